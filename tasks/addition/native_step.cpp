// One training step of an adder (losses, gradients) and one test (margins), eight problems to a vector register.
//
// The arithmetic is that of the shared Llama for the course's configuration: tied embeddings, LayerNorm before each
// block, rotary positions, grouped queries, SwiGLU. `native_step.py` compiles this file for one shape (DIM, LAYERS,
// HEADS, KVHEADS, HEADDIM, FFN are compile-time constants, so every loop over features is unrolled) and calls it;
// tests/test_addition_native.py holds it equal to torch's gradients. All activations of eight problems stay in the
// cache, and a vector lane is one problem, so no product needs a sum across lanes until the batch ends.
#include <cmath>
#include <cstdint>
#include <cstring>

constexpr int T = 16, FIRST = 10, A = T - FIRST, VOC = 13, W = 8;  // positions, that of `=`, answer, tokens, lanes
constexpr int D = DIM, L = LAYERS, H = HEADS, KV = KVHEADS, HD = HEADDIM, F = FFN, G = H / KV;
constexpr int P = VOC * D + L * (4 * D + D * HD * (2 * H + 2 * KV) + 3 * F * D) + 2 * D;
typedef float R;
typedef R V __attribute__((vector_size(W * sizeof(R))));
typedef int32_t I32 __attribute__((vector_size(W * 4)));
#define INL static inline __attribute__((always_inline))
INL V splat(R x) { return x - V{}; }
INL V vexp(V x) {
  V lo = splat(-87.f), hi = splat(87.f);
  x = x < lo ? lo : x; x = x > hi ? hi : x;
  V z = x * (R)1.44269504088896341 ;
  I32 ni = __builtin_convertvector(z + (z > 0 ? splat((R)0.5) : splat((R)-0.5)), I32);
  V n = __builtin_convertvector(ni, V);
  x = x - n * (R)0.693359375; x = x + n * (R)2.12194440e-4;
  V y = splat((R)1.9875691500E-4);
  y = y * x + (R)1.3981999507E-3; y = y * x + (R)8.3334519073E-3; y = y * x + (R)4.1665795894E-2;
  y = y * x + (R)1.6666665459E-1; y = y * x + (R)5.0000001201E-1;
  y = y * x * x + x + (R)1;
  I32 e = (ni + 127) << 23;
  V s; memcpy(&s, &e, sizeof(e)); return y * s;
}
INL V vsqrt(V x) { V r; for (int l = 0; l < W; l++) r[l] = std::sqrt(x[l]); return r; }
// offsets into the flat parameters
struct Off { int emb, an_w[L], an_b[L], q[L], k[L], v[L], o[L], fn_w[L], fn_b[L], w1[L], w2[L], w3[L], nw, nb; };
static Off O;
static R COS[T][HD / 2], SIN[T][HD / 2];
static R EPS;
// Where each tensor starts in the flat parameters, in the order of `native_step.tensor_names`; the rotation tables
// (T, HD / 2). Returns the number of parameters, which the caller checks.
extern "C" int adder_setup(const int* offsets, const R* cos, const R* sin, R eps) {
  const int* next = offsets;
  O.emb = *next++;
  for (int l = 0; l < L; l++) {
    int* tensors[] = {O.an_w, O.an_b, O.q, O.k, O.v, O.o, O.fn_w, O.fn_b, O.w1, O.w2, O.w3};
    for (int* tensor : tensors) tensor[l] = *next++;
  }
  O.nw = *next++;
  O.nb = *next++;
  memcpy(COS, cos, sizeof(COS));
  memcpy(SIN, sin, sizeof(SIN));
  EPS = eps;
  return P;
}
struct Norm { V xhat[T][D], rstd[T], y[T][D]; };
struct Act { V x[T][D]; Norm n1; V q[T][H][HD], k[T][KV][HD], v[T][KV][HD], p[T][H][T], at[T][H * HD]; V xm[T][D]; Norm n2; V g[T][F], u[T][F], sg[T][F], h[T][F]; };
INL void norm(Norm& n, const V (*x)[D], const R* w, const R* b, int first) {
  for (int t = first; t < T; t++) {
    V m = x[t][0]; for (int d = 1; d < D; d++) m += x[t][d]; m *= (R)(1.0 / D);
    V s{}; for (int d = 0; d < D; d++) { V c = x[t][d] - m; n.xhat[t][d] = c; s += c * c; }
    V r = (R)1 / vsqrt(s * (R)(1.0 / D) + EPS); n.rstd[t] = r;
    for (int d = 0; d < D; d++) { V h = n.xhat[t][d] * r; n.xhat[t][d] = h; n.y[t][d] = h * w[d] + b[d]; }
  }
}
// dy -> adds to dx
INL void norm_back(const Norm& n, const V (*dy)[D], V (*dx)[D], const R* w, V* gw, V* gb, int first) {
  V aw[D], ab[D]; for (int d = 0; d < D; d++) aw[d] = gw[d], ab[d] = gb[d];
  for (int t = first; t < T; t++) {
    V m1{}, m2{}, e[D];
    for (int d = 0; d < D; d++) { aw[d] += dy[t][d] * n.xhat[t][d]; ab[d] += dy[t][d]; e[d] = dy[t][d] * w[d]; m1 += e[d]; m2 += e[d] * n.xhat[t][d]; }
    m1 *= (R)(1.0 / D); m2 *= (R)(1.0 / D);
    for (int d = 0; d < D; d++) dx[t][d] += n.rstd[t] * (e[d] - m1 - n.xhat[t][d] * m2);
  }
  for (int d = 0; d < D; d++) gw[d] = aw[d], gb[d] = ab[d];
}
template <int OUT, int IN> INL void mat(V* y, const R* w, const V* x, bool add = false) {
  for (int o = 0; o < OUT; o++) { V s = w[o * IN] * x[0]; for (int i = 1; i < IN; i++) s += w[o * IN + i] * x[i]; y[o] = add ? y[o] + s : s; }
}
template <int OUT, int IN> INL void mat_t(V* dx, const R* w, const V* dy) {  // dx += w^T dy
  for (int i = 0; i < IN; i++) { V s = w[i] * dy[0]; for (int o = 1; o < OUT; o++) s += w[o * IN + i] * dy[o]; dx[i] += s; }
}
template <int OUT, int IN> INL void outer(V* g, const V* dy, int sy, const V* x, int sx, int first) {  // g += sum_t dy x^T
  for (int o = 0; o < OUT; o++) {
    V acc[IN]; for (int i = 0; i < IN; i++) acc[i] = g[o * IN + i];
    for (int t = first; t < T; t++) { V d = dy[t * sy + o]; for (int i = 0; i < IN; i++) acc[i] += d * x[t * sx + i]; }
    for (int i = 0; i < IN; i++) g[o * IN + i] = acc[i];
  }
}
template <int N> INL void rotate(V* x, int t, R sign) {
  for (int i = 0; i < HD / 2; i++) { V e = x[2 * i], o = x[2 * i + 1]; R c = COS[t][i], s = sign * SIN[t][i]; x[2 * i] = e * c - o * s; x[2 * i + 1] = e * s + o * c; }
}
static const R SCALE = 1.0 / std::sqrt((double)HD);
INL void layer(Act& a, V (*out)[D], const R* w, int l, int first) {
  norm(a.n1, a.x, w + O.an_w[l], w + O.an_b[l], 0);
  for (int t = 0; t < T; t++) {
    mat<KV * HD, D>(&a.k[t][0][0], w + O.k[l], a.n1.y[t]); mat<KV * HD, D>(&a.v[t][0][0], w + O.v[l], a.n1.y[t]);
    for (int j = 0; j < KV; j++) rotate<0>(a.k[t][j], t, 1);
  }
  for (int t = first; t < T; t++) {
    mat<H * HD, D>(&a.q[t][0][0], w + O.q[l], a.n1.y[t]);
    for (int h = 0; h < H; h++) { rotate<0>(a.q[t][h], t, 1); for (int i = 0; i < HD; i++) a.q[t][h][i] *= SCALE; }
    for (int h = 0; h < H; h++) {
      V* p = a.p[t][h]; V m = splat(-1e30), z{};
      for (int u = 0; u <= t; u++) { V s = a.q[t][h][0] * a.k[u][h / G][0]; for (int i = 1; i < HD; i++) s += a.q[t][h][i] * a.k[u][h / G][i]; p[u] = s; m = s > m ? s : m; }
      V acc[HD]; for (int i = 0; i < HD; i++) acc[i] = V{};
      for (int u = 0; u <= t; u++) { V e = vexp(p[u] - m); p[u] = e; z += e; for (int i = 0; i < HD; i++) acc[i] += e * a.v[u][h / G][i]; }
      z = (R)1 / z; for (int u = 0; u <= t; u++) p[u] *= z;
      for (int i = 0; i < HD; i++) a.at[t][h * HD + i] = acc[i] * z;
    }
    for (int d = 0; d < D; d++) a.xm[t][d] = a.x[t][d];
    mat<D, H * HD>(a.xm[t], w + O.o[l], a.at[t], true);
  }
  norm(a.n2, a.xm, w + O.fn_w[l], w + O.fn_b[l], first);
  for (int t = first; t < T; t++) {
    mat<F, D>(a.g[t], w + O.w1[l], a.n2.y[t]); mat<F, D>(a.u[t], w + O.w3[l], a.n2.y[t]);
    for (int f = 0; f < F; f++) { a.sg[t][f] = (R)1 / ((R)1 + vexp(-a.g[t][f])); a.h[t][f] = a.g[t][f] * a.sg[t][f] * a.u[t][f]; }
    for (int d = 0; d < D; d++) out[t][d] = a.xm[t][d];
    mat<D, F>(out[t], w + O.w2[l], a.h[t], true);
  }
}
INL void layer_back(const Act& a, V (*dout)[D], const R* w, V* g, int l, int first) {  // dout becomes dx
  V dh[T][F], dg[T][F], du[T][F], dn[T][D];
  for (int t = first; t < T; t++) {
    for (int f = 0; f < F; f++) dh[t][f] = V{};
    mat_t<D, F>(dh[t], w + O.w2[l], dout[t]);
    for (int f = 0; f < F; f++) {
      V s = a.sg[t][f], gg = a.g[t][f];
      du[t][f] = dh[t][f] * gg * s; dg[t][f] = dh[t][f] * a.u[t][f] * s * ((R)1 + gg * ((R)1 - s));
    }
    for (int d = 0; d < D; d++) dn[t][d] = V{};
    mat_t<F, D>(dn[t], w + O.w1[l], dg[t]); mat_t<F, D>(dn[t], w + O.w3[l], du[t]);
  }
  outer<D, F>(g + O.w2[l], &dout[0][0], D, &a.h[0][0], F, first);
  outer<F, D>(g + O.w1[l], &dg[0][0], F, &a.n2.y[0][0], D, first); outer<F, D>(g + O.w3[l], &du[0][0], F, &a.n2.y[0][0], D, first);
  norm_back(a.n2, dn, dout, w + O.fn_w[l], g + O.fn_w[l], g + O.fn_b[l], first);
  // attention
  V dat[T][H * HD], dq[T][H][HD], dk[T][KV][HD], dv[T][KV][HD];
  memset(dk, 0, sizeof(dk)); memset(dv, 0, sizeof(dv));
  for (int t = first; t < T; t++) {
    for (int i = 0; i < H * HD; i++) dat[t][i] = V{};
    mat_t<D, H * HD>(dat[t], w + O.o[l], dout[t]);
    for (int h = 0; h < H; h++) {
      const V* p = a.p[t][h]; const V* da = &dat[t][h * HD]; V dp[T], tot{}, aq[HD];
      for (int i = 0; i < HD; i++) aq[i] = V{}, tot += da[i] * a.at[t][h * HD + i];
      for (int u = 0; u <= t; u++) {
        V s = da[0] * a.v[u][h / G][0]; for (int i = 1; i < HD; i++) s += da[i] * a.v[u][h / G][i];
        V ds = p[u] * (s - tot);
        for (int i = 0; i < HD; i++) { dv[u][h / G][i] += p[u] * da[i]; aq[i] += ds * a.k[u][h / G][i]; dk[u][h / G][i] += ds * a.q[t][h][i]; }
      }
      for (int i = 0; i < HD; i++) dq[t][h][i] = aq[i] * SCALE;
      rotate<0>(dq[t][h], t, -1);
    }
  }
  outer<D, H * HD>(g + O.o[l], &dout[0][0], D, &a.at[0][0], H * HD, first);
  for (int t = 0; t < T; t++) {
    for (int j = 0; j < KV; j++) rotate<0>(dk[t][j], t, -1);
    for (int d = 0; d < D; d++) dn[t][d] = V{};
    if (t < first) for (int d = 0; d < D; d++) dout[t][d] = V{};
    mat_t<KV * HD, D>(dn[t], w + O.k[l], &dk[t][0][0]); mat_t<KV * HD, D>(dn[t], w + O.v[l], &dv[t][0][0]);
    if (t >= first) mat_t<H * HD, D>(dn[t], w + O.q[l], &dq[t][0][0]);
  }
  outer<KV * HD, D>(g + O.k[l], &dk[0][0][0], KV * HD, &a.n1.y[0][0], D, 0); outer<KV * HD, D>(g + O.v[l], &dv[0][0][0], KV * HD, &a.n1.y[0][0], D, 0);
  outer<H * HD, D>(g + O.q[l], &dq[0][0][0], H * HD, &a.n1.y[0][0], D, first);
  norm_back(a.n1, dn, dout, w + O.an_w[l], g + O.an_w[l], g + O.an_b[l], 0);
}
struct Work { Act act[L]; V fin[T][D]; Norm nf; V dx[T][D]; V prob[A][VOC]; int tok[T][W]; };
static void tokens(Work& k, const int* a, const int* b) {
  for (int l = 0; l < W; l++) {
    int x = a[l], y = b[l], c = x + y; int dv[4] = {1000, 100, 10, 1};
    k.tok[0][l] = 0; k.tok[5][l] = 1; k.tok[10][l] = 12; k.tok[15][l] = 0;
    for (int i = 0; i < 4; i++) k.tok[1 + i][l] = x / dv[i] % 10 + 2, k.tok[6 + i][l] = y / dv[i] % 10 + 2;
    if (c >= 10000) { k.tok[11][l] = c / 10000 + 2; for (int i = 0; i < 4; i++) k.tok[12 + i][l] = c / dv[i] % 10 + 2; }
    else for (int i = 0; i < 4; i++) k.tok[11 + i][l] = c / dv[i] % 10 + 2;
  }
}
static void forward(Work& k, const R* w, V (*logit)[VOC]) {
  for (int t = 0; t < T; t++) for (int l = 0; l < W; l++) for (int d = 0; d < D; d++) k.act[0].x[t][d][l] = w[O.emb + k.tok[t][l] * D + d];
  for (int l = 0; l < L; l++) layer(k.act[l], l + 1 < L ? k.act[l + 1].x : k.fin, w, l, l + 1 < L ? 0 : FIRST);
  norm(k.nf, k.fin, w + O.nw, w + O.nb, FIRST);
  for (int t = 0; t < A; t++) mat<VOC, D>(logit[t], w + O.emb, k.nf.y[FIRST + t]);
}
// One block: what the answers lose, whether they are right and by how much; with `g` also the gradient, per lane.
struct Result { R loss[W], right[W], margin[W]; };
static void block(Work& k, const R* w, V* g, const R* weight, Result& out) {
  V logit[A][VOC];
  forward(k, w, logit);
  V total{}, margin = splat(1e30f);
  for (int t = 0; t < A; t++) {
    V mask, most = splat(-1e30f), rival = most, chosen{}, z{}, e[VOC], one[VOC];
    I32 target;
    for (int l = 0; l < W; l++) {
      mask[l] = t < 5 || k.tok[15][l] > 0;  // past the end of a four-digit answer nothing is asked
      target[l] = t < 5 ? k.tok[FIRST + 1 + t][l] : 0;
    }
    for (int v = 0; v < VOC; v++) {
      for (int l = 0; l < W; l++) one[v][l] = target[l] == v;
      chosen += one[v] * logit[t][v];
      V other = logit[t][v] - one[v] * (R)1e30;
      rival = other > rival ? other : rival;
      most = logit[t][v] > most ? logit[t][v] : most;
    }
    for (int v = 0; v < VOC; v++) e[v] = vexp(logit[t][v] - most), z += e[v];
    V share = mask / z;
    for (int l = 0; l < W; l++) {
      total[l] += mask[l] * (most[l] + std::log(z[l]) - chosen[l]);
      R lead = chosen[l] - rival[l];
      if (mask[l] > 0 && lead < margin[l]) margin[l] = lead;
    }
    for (int v = 0; v < VOC; v++)
      for (int l = 0; l < W; l++) k.prob[t][v][l] = (e[v][l] * share[l] - one[v][l] * mask[l]) * weight[l];
  }
  for (int l = 0; l < W; l++) out.loss[l] = total[l] * weight[l], out.right[l] = margin[l] > 0 ? weight[l] : 0, out.margin[l] = margin[l];
  if (!g) return;
  V dy[T][D];
  for (int t = 0; t < A; t++) {
    for (int d = 0; d < D; d++) dy[FIRST + t][d] = V{}, k.dx[FIRST + t][d] = V{};
    mat_t<VOC, D>(dy[FIRST + t], w + O.emb, k.prob[t]);
    for (int v = 0; v < VOC; v++)
      for (int d = 0; d < D; d++) g[O.emb + v * D + d] += k.prob[t][v] * k.nf.y[FIRST + t][d];
  }
  norm_back(k.nf, dy, k.dx, w + O.nw, g + O.nw, g + O.nb, FIRST);
  for (int l = L - 1; l >= 0; l--) layer_back(k.act[l], k.dx, w, g, l, l + 1 < L ? 0 : FIRST);
  R* ge = (R*)(g + O.emb);
  for (int t = 0; t < T; t++)
    for (int l = 0; l < W; l++)
      for (int d = 0; d < D; d++) ge[(k.tok[t][l] * D + d) * W + l] += k.dx[t][d][l];
}
// Operands a and b and weights, each (n,); of one model with parameters w (P,): the weighted sums of losses and of
// right answers in sums (2,), the gradient of the former in grad (P,) and each problem's margin in margins (n,), the
// last two only where given.
extern "C" void adder_step(const R* w, const int64_t* a, const int64_t* b, const R* weights, int n, double* sums, R* grad, R* margins) {
  static thread_local Work k;
  alignas(64) static thread_local V g[P];
  if (grad) memset(g, 0, sizeof(g));
  sums[0] = sums[1] = 0;
  for (int start = 0; start < n; start += W) {
    int x[W], y[W];
    R weight[W];
    Result out;
    for (int l = 0; l < W; l++) {
      int i = start + l < n ? start + l : n - 1;  // lanes past the end count nothing
      x[l] = a[i], y[l] = b[i], weight[l] = start + l < n ? weights[i] : 0;
    }
    tokens(k, x, y);
    block(k, w, grad ? g : nullptr, weight, out);
    for (int l = 0; l < W && start + l < n; l++) {
      sums[0] += out.loss[l], sums[1] += out.right[l];
      if (margins) margins[start + l] = out.margin[l];
    }
  }
  if (grad)
    for (int p = 0; p < P; p++) {
      grad[p] = 0;
      for (int l = 0; l < W; l++) grad[p] += g[p][l];
    }
}
// Weighted losses (models,) of several models, pointers to their parameters (P,), `stride` apart, on the same n problems,
// and their gradients. A batch is divided into parts of `part` problems, whose gradients lie in (models, parts, P); each
// model's sum over the parts ends in its first part. The order of the sums does not depend on the number of threads.
extern "C" void adder_gradients(R* const* models, int stride, int count, const int64_t* a, const int64_t* b, const R* weights, int n, int part, int threads, R* gradients, double* losses) {
  int parts = (n + part - 1) / part;
  double* sums = new double[2 * count * parts];
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int job = 0; job < count * parts; job++) {
    int start = job % parts * part, size = n - start < part ? n - start : part;
    adder_step(models[job / parts * stride], a + start, b + start, weights + start, size, sums + 2 * job, gradients + (size_t)job * P, nullptr);
  }
  for (int m = 0; m < count; m++) {
    R* total = gradients + (size_t)m * parts * P;
    losses[m] = 0;
    for (int i = 0; i < parts; i++) losses[m] += sums[2 * (m * parts + i)];
    for (int i = 1; i < parts; i++) for (int p = 0; p < P; p++) total[p] += total[i * P + p];
  }
  delete[] sums;
}
// X <- a X + (b X X^T + c (X X^T)^2) X five times, X (ROWS, COLS) of norm 1 and no taller than wide
template <int ROWS, int COLS> static void orthogonalise(R (*x)[COLS], const R* abc) {
  R square = 0;
  for (int i = 0; i < ROWS; i++) for (int j = 0; j < COLS; j++) square += x[i][j] * x[i][j];
  R scale = 1 / (std::sqrt(square) * (R)1.01 + (R)1e-7);
  for (int i = 0; i < ROWS; i++) for (int j = 0; j < COLS; j++) x[i][j] *= scale;
  for (int step = 0; step < 5; step++) {
    R gram[ROWS][ROWS], mixed[ROWS][ROWS], next[ROWS][COLS];
    for (int i = 0; i < ROWS; i++) for (int j = 0; j < ROWS; j++) { R s = 0; for (int k = 0; k < COLS; k++) s += x[i][k] * x[j][k]; gram[i][j] = s; }
    for (int i = 0; i < ROWS; i++) for (int j = 0; j < ROWS; j++) { R s = 0; for (int k = 0; k < ROWS; k++) s += gram[i][k] * gram[j][k]; mixed[i][j] = abc[1] * gram[i][j] + abc[2] * s; }
    for (int i = 0; i < ROWS; i++) for (int j = 0; j < COLS; j++) { R s = abc[0] * x[i][j]; for (int k = 0; k < ROWS; k++) s += mixed[i][k] * x[k][j]; next[i][j] = s; }
    memcpy(x, next, sizeof(next));
  }
}
template <int ROWS, int COLS> static void muon(R* w, const R* before, const R* g, R* momentum, const R* abc, R beta, R rate) {
  constexpr int SHORT = ROWS < COLS ? ROWS : COLS, LONG = ROWS < COLS ? COLS : ROWS;
  R x[SHORT][LONG];
  auto cell = [&](int i) -> R& { return ROWS <= COLS ? x[i / COLS][i % COLS] : x[i % COLS][i / COLS]; };
  for (int i = 0; i < ROWS * COLS; i++) {
    momentum[i] += (1 - beta) * (g[i] - momentum[i]);
    cell(i) = g[i] + beta * (momentum[i] - g[i]);
  }
  orthogonalise<SHORT, LONG>(x, abc);
  for (int i = 0; i < ROWS * COLS; i++) w[i] = before[i] - rate * std::sqrt((R)LONG) * cell(i);
}
// Muon's step from `before` for the matrices of the layers of one model, everything (P,); `abc` are the coefficients.
static void move_matrices(R* w, const R* before, const R* g, R* momentum, const R* abc, R beta, R rate) {
  for (int l = 0; l < L; l++) {
#define MUON(ROWS, COLS, AT) muon<ROWS, COLS>(w + AT, before + AT, g + AT, momentum + AT, abc, beta, rate)
    MUON(H * HD, D, O.q[l]); MUON(KV * HD, D, O.k[l]); MUON(KV * HD, D, O.v[l]); MUON(D, H * HD, O.o[l]);
    MUON(F, D, O.w1[l]); MUON(D, F, O.w2[l]); MUON(F, D, O.w3[l]);
#undef MUON
  }
}
// The update of one model with Muon from its gradient g (P,): clipping, AdamW, then Muon for the matrices.
// `tensors`: parameters, AdamW's moments, Muon's momentum, each (P,). `rates`: step size, eps, beta1, beta2, largest norm
// (0: none), decay, Muon's beta and rate.
static void move(R* const* tensors, R* g, const R* rates, const R* abc) {
  R *w = tensors[0], *mean = tensors[1], *square = tensors[2], *momentum = tensors[3];
  static thread_local R before[P];
  double norm = 0;
  for (int p = 0; p < P; p++) norm += (double)g[p] * g[p];
  double factor = rates[4] / (std::sqrt(norm) + 1e-6);
  R clip = rates[4] > 0 && factor < 1 ? factor : 1;
  for (int p = 0; p < P; p++) {
    g[p] *= clip;
    before[p] = w[p] * (1 - rates[5]);
    mean[p] += (1 - rates[2]) * (g[p] - mean[p]);
    square[p] = rates[3] * square[p] + (1 - rates[3]) * g[p] * g[p];
    w[p] = (w[p] - rates[0] * mean[p] / (std::sqrt(square[p]) + rates[1])) * (1 - rates[5]);
  }
  move_matrices(w, before, g, momentum, abc, rates[6], rates[7]);
}
// Whole updates of several models on the same problems: `adder_gradients`, then `move` with four tensors of each.
extern "C" void adder_updates(R* const* tensors, int count, const int64_t* a, const int64_t* b, const R* weights, int n, int part, int threads, R* gradients, double* losses, const R* rates, const R* abc) {
  adder_gradients(tensors, 4, count, a, b, weights, n, part, threads, gradients, losses);
  size_t apart = (size_t)((n + part - 1) / part) * P;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int m = 0; m < count; m++) move(tensors + 4 * m, gradients + m * apart, rates, abc);
}
