/* h_t = exp(d_t A) h_{t-1} + d_t B_t u_t,  y_t = C_t . h_t, for each channel with a state of N numbers, and its gradient.
 *
 * u, d, y: (batch, length, channels); A: (N, channels), times log2(e); B, C: (batch, length, groups, N), a group's
 * channels side by side. With gap and idle the decay takes a longer step, d_t + gap_t idle, and the input its own.
 * Behind it the softplus that makes the d_t, of which torch's takes twice as long as the whole scan.
 * W channels at a time are one vector; the states and the exponentials never leave the cache. For the gradient the
 * states at every S-th step are kept, and those between are computed again. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define W 16   /* channels in a vector: one of AVX-512, two of AVX2, four of NEON */
#define S 32   /* steps between two states that are kept; kernels/selective_scan.py knows it too */
#define EACH for (int i = 0; i < W; i++)
#define SIMD _Pragma("GCC ivdep") EACH

typedef struct { float v[W]; } vec __attribute__((aligned(64)));

/* 2^x for x <= 0, to 1e-7; everything below 2^-126 is 2^-126 */
static inline float power(float x) {
    x = x < -126.0f ? -126.0f : x;
    float r = x + 12582912.0f;              /* rounds to a whole number, found in the low bits */
    float f = x - (r - 12582912.0f);        /* -0.5 .. 0.5 */
    int32_t bits;
    memcpy(&bits, &r, 4);
    float p = 1.5403530e-4f;
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    int32_t out;
    memcpy(&out, &p, 4);
    out += bits << 23;
    memcpy(&p, &out, 4);
    return p;
}

static inline void load(vec *to, const float *from, int n) {
    if (n == W) { SIMD to->v[i] = from[i]; }
    else EACH to->v[i] = i < n ? from[i] : 0.0f;
}

static inline void store(float *to, const vec *from, int n) {
    if (n == W) { SIMD to[i] = from->v[i]; }
    else for (int i = 0; i < n; i++) to[i] = from->v[i];
}

/* one step of W channels: the states h, the decays a where they are wanted, and y */
static inline __attribute__((always_inline)) void step(vec *h, vec *a, vec *y, const vec *A, const vec *d, const vec *du,
                                                       const float *B, const float *C, int N) {
    vec sum;
    SIMD sum.v[i] = 0.0f;
    for (int n = 0; n < N; n++) {
        float b = B[n], c = C ? C[n] : 0.0f;
        vec e;
        SIMD e.v[i] = power(d->v[i] * A[n].v[i]);
        SIMD h[n].v[i] = e.v[i] * h[n].v[i] + du->v[i] * b;
        SIMD sum.v[i] += h[n].v[i] * c;
        if (a) a[n] = e;
    }
    if (y) *y = sum;
}

typedef struct {
    int64_t batch, length, channels, groups, states, splits, reverse;
    const float *u, *d, *A, *B, *C, *first; /* first: (batch, N, channels) or null */
    const float *gap, *idle;                /* (batch, length) and (channels), or both null */
    float *y, *kept, *last;                 /* kept: (batch, length / S, N, channels) or null; last: as first, or null */
} problem;

typedef struct { int64_t b, g, from, to; } part; /* channels [from, to) of group g of image b */

static part part_of(const problem *p, int64_t task) {
    int64_t split = task % p->splits, g = task / p->splits % p->groups, b = task / p->splits / p->groups;
    int64_t width = p->channels / p->groups, blocks = (width + W - 1) / W;
    int64_t low = split * blocks / p->splits * W, high = (split + 1) * blocks / p->splits * W;
    part r = {b, g, g * width + low, g * width + (high < width ? high : width)};
    return r;
}

static inline int64_t place(const problem *p, int64_t t) { return p->reverse ? p->length - 1 - t : t; }

/* the step that the decay takes: d, longer by what is missing before the token in `row` */
static inline __attribute__((always_inline)) void stretch(const problem *p, int64_t row, vec *d, const vec *idle) {
    if (p->gap) {
        float missing = p->gap[row];
        SIMD d->v[i] += missing * idle->v[i];
    }
}

static inline __attribute__((always_inline)) void forward_block(const problem *p, part r, int64_t e, const int N) {
    vec h[N], A[N], idle;
    int n_e = r.to - e < W ? (int)(r.to - e) : W;
    if (p->gap) load(&idle, p->idle + e, n_e);
    for (int n = 0; n < N; n++) {
        load(&A[n], p->A + n * p->channels + e, n_e);
        if (p->first) load(&h[n], p->first + (r.b * N + n) * p->channels + e, n_e);
        else SIMD h[n].v[i] = 0.0f;
    }
    int64_t count = p->length / S;
    for (int64_t t = 0; t < p->length; t++) {
        int64_t row = r.b * p->length + place(p, t), at = row * p->channels + e, bc = (row * p->groups + r.g) * N;
        vec d, du, y;
        load(&d, p->d + at, n_e);
        load(&du, p->u + at, n_e);
        SIMD du.v[i] *= d.v[i];
        stretch(p, row, &d, &idle);
        step(h, NULL, &y, A, &d, &du, p->B + bc, p->C + bc, N);
        store(p->y + at, &y, n_e);
        if (p->kept && (t + 1) % S == 0)
            for (int n = 0; n < N; n++)
                store(p->kept + ((r.b * count + t / S) * N + n) * p->channels + e, &h[n], n_e);
    }
    if (p->last)
        for (int n = 0; n < N; n++) store(p->last + (r.b * N + n) * p->channels + e, &h[n], n_e);
}

void selective_scan_forward(const problem *p) {
    int64_t tasks = p->batch * p->groups * p->splits;
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < tasks; task++) {
        part r = part_of(p, task);
        for (int64_t e = r.from; e < r.to; e += W) {
            if (p->states == 16) forward_block(p, r, e, 16);
            else if (p->states == 1) forward_block(p, r, e, 1);
            else forward_block(p, r, e, (int)p->states);
        }
    }
}

typedef struct {
    problem p;
    const float *dy, *dlast;     /* as y and last, dlast may be null */
    float *du, *dd, *dA;         /* dA: (batch, N, channels), of A itself */
    float *dB, *dC;              /* (splits, batch, length, groups, N) */
    float *dfirst, *didle;       /* as first, or null; (batch, channels), or null */
} gradient;

/* Steps [t0, t0 + n) of one block, backwards; h and a: the chunk's states (S + 1) x N and decays S x N; g: the gradient
 * of the state behind the chunk, then of the one before it. */
static inline __attribute__((always_inline)) void backward_block(const gradient *q, part r, int64_t e, int64_t t0, int len,
        vec *h, vec *a, float *carry, vec *dB, vec *dC, const int N) {
    const problem *p = &q->p;
    int n_e = r.to - e < W ? (int)(r.to - e) : W;
    int64_t count = p->length / S;
    vec A[N], g[N], dA[N], idle, didle;
    if (p->gap) {
        load(&idle, p->idle + e, n_e);
        load(&didle, q->didle + r.b * p->channels + e, n_e);
    }
    for (int n = 0; n < N; n++) {
        load(&A[n], p->A + n * p->channels + e, n_e);
        load(&dA[n], q->dA + (r.b * N + n) * p->channels + e, n_e);
        SIMD g[n].v[i] = carry[n * W + i];
        if (t0) load(&h[n], p->kept + ((r.b * count + t0 / S - 1) * N + n) * p->channels + e, n_e);
        else if (p->first) load(&h[n], p->first + (r.b * N + n) * p->channels + e, n_e);
        else SIMD h[n].v[i] = 0.0f;
    }
    vec d[S], u[S];
    for (int j = 0; j < len; j++) {
        int64_t row = r.b * p->length + place(p, t0 + j), at = row * p->channels + e, bc = (row * p->groups + r.g) * N;
        vec du, over;
        load(&d[j], p->d + at, n_e);
        load(&u[j], p->u + at, n_e);
        SIMD du.v[i] = u[j].v[i] * d[j].v[i];
        over = d[j];
        stretch(p, row, &over, &idle);
        vec *next = h + (j + 1) * N;
        for (int n = 0; n < N; n++) {
            vec x;
            float b = p->B[bc + n];
            SIMD x.v[i] = power(over.v[i] * A[n].v[i]);
            a[j * N + n] = x;
            SIMD next[n].v[i] = x.v[i] * h[j * N + n].v[i] + du.v[i] * b;
        }
    }
    for (int j = len - 1; j >= 0; j--) {
        int64_t row = r.b * p->length + place(p, t0 + j), at = row * p->channels + e, bc = (row * p->groups + r.g) * N;
        vec dy, through, decay, du, over = d[j];
        load(&dy, q->dy + at, n_e);
        stretch(p, row, &over, &idle);
        SIMD { through.v[i] = 0.0f; decay.v[i] = 0.0f; du.v[i] = u[j].v[i] * d[j].v[i]; }
        for (int n = 0; n < N; n++) {
            float b = p->B[bc + n], c = p->C[bc + n];
            vec *before = &h[j * N + n], *now = &h[(j + 1) * N + n], *x = &a[j * N + n];
            vec *sB = &dB[j * N + n], *sC = &dC[j * N + n], k;
            SIMD g[n].v[i] += dy.v[i] * c;
            SIMD sC->v[i] += dy.v[i] * now->v[i];
            SIMD sB->v[i] += g[n].v[i] * du.v[i];
            SIMD through.v[i] += g[n].v[i] * b;
            SIMD g[n].v[i] *= x->v[i];
            SIMD k.v[i] = g[n].v[i] * before->v[i];
            SIMD decay.v[i] += k.v[i] * A[n].v[i];
            SIMD dA[n].v[i] += k.v[i] * over.v[i];
        }
        SIMD decay.v[i] *= 0.69314718f;
        if (p->gap) {
            float missing = p->gap[row];
            SIMD didle.v[i] += missing * decay.v[i];
        }
        SIMD decay.v[i] += through.v[i] * u[j].v[i];
        SIMD through.v[i] *= d[j].v[i];
        store(q->du + at, &through, n_e);
        store(q->dd + at, &decay, n_e);
    }
    for (int n = 0; n < N; n++) {
        store(q->dA + (r.b * N + n) * p->channels + e, &dA[n], n_e);
        SIMD carry[n * W + i] = g[n].v[i];
    }
    if (p->gap) store(q->didle + r.b * p->channels + e, &didle, n_e);
}

static float total(const vec *x) {
    float s = 0.0f;
    EACH s += x->v[i];
    return s;
}

static void backward_part(const gradient *q, int64_t task) {
    const problem *p = &q->p;
    part r = part_of(p, task);
    const int N = (int)p->states;
    int64_t blocks = (r.to - r.from + W - 1) / W, split = task % p->splits;
    if (blocks <= 0) return;
    size_t chunk = (size_t)S * N;
    vec *memory = aligned_alloc(64, sizeof(vec) * (4 * chunk + N + blocks * N));
    vec *h = memory, *a = h + chunk + N, *dB = a + chunk, *dC = dB + chunk;
    float *carry = (float *)(dC + chunk);
    for (int64_t k = 0; k < blocks; k++)
        for (int n = 0; n < N; n++)
            for (int i = 0; i < W; i++) {
                int64_t e = r.from + k * W + i;
                carry[(k * N + n) * W + i] = q->dlast && e < r.to ? q->dlast[(r.b * N + n) * p->channels + e] : 0.0f;
            }
    for (int64_t t0 = (p->length - 1) / S * S; t0 >= 0; t0 -= S) {
        int len = p->length - t0 < S ? (int)(p->length - t0) : S;
        memset(dB, 0, sizeof(vec) * 2 * chunk);
        for (int64_t k = 0; k < blocks; k++) {
            int64_t e = r.from + k * W;
            if (N == 16) backward_block(q, r, e, t0, len, h, a, carry + k * 16 * W, dB, dC, 16);
            else if (N == 1) backward_block(q, r, e, t0, len, h, a, carry + k * W, dB, dC, 1);
            else backward_block(q, r, e, t0, len, h, a, carry + k * N * W, dB, dC, N);
        }
        for (int j = 0; j < len; j++) {
            int64_t row = r.b * p->length + place(p, t0 + j);
            int64_t to = ((split * p->batch * p->length + row) * p->groups + r.g) * N;
            for (int n = 0; n < N; n++) {
                q->dB[to + n] = total(&dB[j * N + n]);
                q->dC[to + n] = total(&dC[j * N + n]);
            }
        }
    }
    if (q->dfirst)
        for (int64_t k = 0; k < blocks; k++)
            for (int n = 0; n < N; n++)
                for (int i = 0; i < W && r.from + k * W + i < r.to; i++)
                    q->dfirst[(r.b * N + n) * p->channels + r.from + k * W + i] = carry[(k * N + n) * W + i];
    free(memory);
}

void selective_scan_backward(const gradient *q) {
    int64_t tasks = q->p.batch * q->p.groups * q->p.splits;
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < tasks; task++) backward_part(q, task);
}

/* log(1 + e^x) = max(x, 0) + log(1 + e), e = e^-|x|, and log(1 + e) = 2 artanh(s), s = e / (2 + e) <= 1/3 */
void softplus_forward(const float *x, float *y, int64_t n) {
#pragma omp parallel for simd schedule(static) if (n > 16384)
    for (int64_t i = 0; i < n; i++) {
        float e = power(fabsf(x[i]) * -1.44269504f), s = e / (2.0f + e), q = s * s;
        float p = 1.0f / 15.0f;
        p = p * q + 1.0f / 13.0f;
        p = p * q + 1.0f / 11.0f;
        p = p * q + 1.0f / 9.0f;
        p = p * q + 1.0f / 7.0f;
        p = p * q + 1.0f / 5.0f;
        p = p * q + 1.0f / 3.0f;
        p = p * q + 1.0f;
        y[i] = (x[i] > 0.0f ? x[i] : 0.0f) + 2.0f * s * p;
    }
}

/* dx = dy / (1 + e^-x) */
void softplus_backward(const float *x, const float *dy, float *dx, int64_t n) {
#pragma omp parallel for simd schedule(static) if (n > 16384)
    for (int64_t i = 0; i < n; i++) {
        float e = power(fabsf(x[i]) * -1.44269504f);
        dx[i] = dy[i] * (x[i] > 0.0f ? 1.0f : e) / (1.0f + e);
    }
}
