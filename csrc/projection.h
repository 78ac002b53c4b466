// Leave-one-out ridge projections of one sample and their gradient, in float64.
//
// With G = Z^T Z of a sample's m embeddings and H = (G + ridge)^-1, the coefficients of z_t on the others are
// c = -H[:, t] / H[t, t]. For an upstream gradient g of the projection of z_t, with r = Z^T g, the vector
// e = H r - H[:, t] (H r)_t / H[t, t] is (G_t + ridge)^-1 A_t^T g, and
//
//     dz_t += A_t e,      dA_t += (g - A_t e) c^T + (z_t - A_t c) e^T,
//
// a combination of the z's and the g's with m x m coefficients. `kernels/projection/cpu.py` computes the same.
//
// The code says what the lanes that share a sample do, and leaves to `Lanes` how they do it:
//
//     lanes.each(count, f)                 f(i) for every i < count, each by one lane; then all lanes wait
//     lanes.template sum<N>(part, take)    part(lane, lanes, s) adds one lane's share to s[N]; one lane gets the totals
//                                          by take(s); then all lanes wait
//
// On a GPU they are a part of a warp (projection.cuh); on a host, where tests run this same code, a loop.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__
#define MIBFAST_DEVICE __device__ __forceinline__
#define MIBFAST_UNROLL _Pragma("unroll")
#else
#define MIBFAST_DEVICE inline
#define MIBFAST_UNROLL
#endif

namespace mibfast::projection {

constexpr int MOST_MODALITIES = 16;
// As in kernels/projection/reference.py.
constexpr double RELATIVE_FLOOR = 0x1p-40;
constexpr double SMALLEST_RIDGE = 0x1p-1000;

// Kernels are compiled for M modalities: exactly as many up to 8, up to as many above.
constexpr int compiled_for(int m) { return m <= 8 ? m : m <= 12 ? 12 : 16; }
template <int M>
MIBFAST_DEVICE constexpr int modalities(int m) {
    return M <= 8 ? M : m;
}

// f(std::integral_constant<int, compiled_for(m)>) for m from 2 to MOST_MODALITIES.
template <typename F>
auto for_modalities(int m, const F& f) {
    switch (compiled_for(m)) {
        case 2: return f(std::integral_constant<int, 2>{});
        case 3: return f(std::integral_constant<int, 3>{});
        case 4: return f(std::integral_constant<int, 4>{});
        case 5: return f(std::integral_constant<int, 5>{});
        case 6: return f(std::integral_constant<int, 6>{});
        case 7: return f(std::integral_constant<int, 7>{});
        case 8: return f(std::integral_constant<int, 8>{});
        case 12: return f(std::integral_constant<int, 12>{});
        default: return f(std::integral_constant<int, 16>{});
    }
}

// Rows of an M x M matrix lie this far apart, an odd number, so that a column's entries lie in different banks.
template <int M>
constexpr int LEADING = M | 1;
// M x M matrices that a sample needs at a time.
constexpr int FORWARD_MATRICES = 2, BACKWARD_MATRICES = 3;
// Numbers that they take, an even one.
constexpr int numbers_of_matrices(int count, int M) { return (count * M * (M | 1) + 1) / 2 * 2; }

// Consecutive numbers of a row that a lane takes at a time: 16 bytes, fewer where `rows` of them fill the registers.
constexpr int width(int size, int rows) {
    int result = 16 / size;
    while (result > 1 && result * rows > 48) result /= 2;
    return result;
}
template <typename T, int rows>
constexpr int WIDTH = width(sizeof(T), rows);

template <typename T, int W>
struct alignas(W * sizeof(T)) Vector {
    T x[W];
};

template <typename T>
MIBFAST_DEVICE double widened(T x) {
    return static_cast<double>(x);
}

template <typename T>
MIBFAST_DEVICE T rounded(double x) {
    return static_cast<T>(x);
}

// Numbers j to j + W of a row of d; zeros past its end. `aligned` rows begin at multiples of 16 bytes and end at one.
template <int W, typename T>
MIBFAST_DEVICE Vector<T, W> load(const T* row, int j, int d, bool aligned) {
    if (aligned) return *reinterpret_cast<const Vector<T, W>*>(row + j);
    Vector<T, W> loaded;
    MIBFAST_UNROLL
    for (int e = 0; e < W; ++e) loaded.x[e] = j + e < d ? row[j + e] : static_cast<T>(0.0f);
    return loaded;
}

template <int W, typename T>
MIBFAST_DEVICE void store(const Vector<T, W>& stored, T* row, int j, int d, bool aligned) {
    if (aligned) {
        *reinterpret_cast<Vector<T, W>*>(row + j) = stored;
        return;
    }
    MIBFAST_UNROLL
    for (int e = 0; e < W; ++e)
        if (j + e < d) row[j + e] = stored.x[e];
}

// out[r, c] = left_r . right_c for rows `first` to first + TILE of the left and `second` to second + TILE of the right,
// of m each; only c <= r of a `symmetric` tile, whose two sides are the same rows.
template <typename T, int TILE, bool symmetric, int leading, typename Lanes, typename Left, typename Right>
MIBFAST_DEVICE void products_of_tile(const Lanes& lanes, const Left& left, int first, const Right& right, int second,
                                     int m, int d, bool aligned, double* out) {
    constexpr int W = WIDTH<T, symmetric ? TILE : 2 * TILE>;
    constexpr int COUNT = symmetric ? TILE * (TILE + 1) / 2 : TILE * TILE;
    const auto part = [&](int lane, int count, double(&sums)[COUNT]) {
        for (int j = lane * W; j < d; j += count * W) {
            Vector<T, W> a[TILE], b[TILE];
            MIBFAST_UNROLL
            for (int r = 0; r < TILE; ++r) {
                if (first + r < m) a[r] = load<W>(left(first + r), j, d, aligned);
                if (!symmetric && second + r < m) b[r] = load<W>(right(second + r), j, d, aligned);
            }
            MIBFAST_UNROLL
            for (int e = 0; e < W; ++e) {
                double x[TILE], y[TILE];
                MIBFAST_UNROLL
                for (int r = 0; r < TILE; ++r) {
                    x[r] = first + r < m ? widened(a[r].x[e]) : 0.0;
                    y[r] = symmetric ? x[r] : second + r < m ? widened(b[r].x[e]) : 0.0;
                }
                int entry = 0;
                MIBFAST_UNROLL
                for (int r = 0; r < TILE; ++r) {
                    MIBFAST_UNROLL
                    for (int c = 0; c < (symmetric ? r + 1 : TILE); ++c) sums[entry++] += x[r] * y[c];
                }
            }
        }
    };
    const auto take = [&](const double(&sums)[COUNT]) {
        int entry = 0;
        MIBFAST_UNROLL
        for (int r = 0; r < TILE; ++r) {
            MIBFAST_UNROLL
            for (int c = 0; c < (symmetric ? r + 1 : TILE); ++c) {
                if (first + r < m && second + c < m) out[(first + r) * leading + second + c] = sums[entry];
                ++entry;
            }
        }
    };
    lanes.template sum<COUNT>(part, take);
}

// out[k, t] = left_k . right_t; only the lower triangle is asked for where `symmetric`, the two sides being the same.
template <typename T, int M, bool symmetric, typename Lanes, typename Left, typename Right>
MIBFAST_DEVICE void products(const Lanes& lanes, const Left& left, const Right& right, int m, int d, bool aligned,
                             double* out) {
    // A tile's sums stand in registers, as many as fit.
    if constexpr (M <= 8) {
        products_of_tile<T, M, symmetric, LEADING<M>>(lanes, left, 0, right, 0, m, d, aligned, out);
    } else {
        constexpr int TILE = M / 2;
        for (int first = 0; first < m; first += TILE)
            for (int second = 0; second < (symmetric ? first + 1 : m); second += TILE)
                products_of_tile<T, TILE, false, LEADING<M>>(lanes, left, first, right, second, m, d, aligned, out);
    }
}

// w = L^-1, lower triangle, where L L^T = gram + the ridge in effect. The lower triangle of `gram` is overwritten.
// The ridge is raised to the rounding of each row of the Gram matrix.
template <int M, typename Lanes>
MIBFAST_DEVICE void cholesky_inverse(const Lanes& lanes, int m, double ridge, double* gram, double* w) {
    constexpr int L = LEADING<M>;
    for (int j = 0; j < m; ++j) {
        lanes.each(m - j, [&](int below) {
            const int i = j + below;
            // Comparisons that a NaN fails, so that it stays.
            double raised = gram[j * L + j] * RELATIVE_FLOOR;
            raised = raised < ridge ? ridge : raised;
            raised = raised < SMALLEST_RIDGE ? SMALLEST_RIDGE : raised;
            double pivot = gram[j * L + j] + raised, x = gram[i * L + j];
            for (int k = 0; k < j; ++k) {
                pivot -= gram[j * L + k] * gram[j * L + k];
                x -= gram[i * L + k] * gram[j * L + k];
            }
            // Rounding alone can take a pivot below the ridge.
            pivot = pivot < raised ? raised : pivot;
            const double reciprocal = 1.0 / std::sqrt(pivot);
            // The diagonal of L is kept as its reciprocal, in w; that of the Gram matrix is being read.
            if (below == 0)
                w[j * L + j] = reciprocal;
            else
                gram[i * L + j] = x * reciprocal;
        });
    }
    lanes.each(m, [&](int j) {
        for (int i = j + 1; i < m; ++i) {
            double x = 0.0;
            for (int k = j; k < i; ++k) x -= gram[i * L + k] * w[k * L + j];
            w[i * L + j] = x * w[i * L + i];
        }
    });
}

// All projections of a sample, out(t) [d], and H = w^T w, `inverse` [m, m]; nothing is written unless `kept`.
// `small` has room for FORWARD_MATRICES.
template <typename T, int M, typename Lanes, typename Rows, typename Out>
MIBFAST_DEVICE void project(const Lanes& lanes, const Rows& z, int m, int d, bool aligned, double ridge, double* small,
                            double* inverse, const Out& out, bool kept) {
    constexpr int L = LEADING<M>, W = WIDTH<T, M>;
    double *gram = small, *w = small + M * L, *coefficients = small;
    products<T, M, true>(lanes, z, z, m, d, aligned, gram);
    cholesky_inverse<M>(lanes, m, ridge, gram, w);
    lanes.each(m, [&](int t) {
        double diagonal = 0.0;
        for (int i = t; i < m; ++i) diagonal += w[i * L + t] * w[i * L + t];
        const double scale = -1.0 / diagonal;
        for (int k = 0; k < m; ++k) {
            double h = 0.0;
            for (int i = k < t ? t : k; i < m; ++i) h += w[i * L + k] * w[i * L + t];
            coefficients[k * L + t] = h * scale;
            if (kept) inverse[k * m + t] = h;
        }
    });
    lanes.each((d + W - 1) / W, [&](int piece) {
        const int j = piece * W;
        double x[M][W];
        MIBFAST_UNROLL
        for (int k = 0; k < M; ++k) {
            if (k >= m) continue;
            const Vector<T, W> loaded = load<W>(z(k), j, d, aligned);
            MIBFAST_UNROLL
            for (int e = 0; e < W; ++e) x[k][e] = widened(loaded.x[e]);
        }
        MIBFAST_UNROLL
        for (int t = 0; t < M; ++t) {
            if (t >= m) continue;
            double sum[W] = {};
            MIBFAST_UNROLL
            for (int k = 0; k < M; ++k) {
                if (k == t || k >= m) continue;
                const double c = coefficients[k * L + t];
                MIBFAST_UNROLL
                for (int e = 0; e < W; ++e) sum[e] += c * x[k][e];
            }
            Vector<T, W> result;
            MIBFAST_UNROLL
            for (int e = 0; e < W; ++e) result.x[e] = rounded<T>(sum[e]);
            if (kept) store<W>(result, out(t), j, d, aligned);
        }
    });
}

// Gradients out(k) [d] of `project`, for upstream gradients g(t) [d], from H; nothing is written unless `kept`.
// `small` has room for BACKWARD_MATRICES.
template <typename T, int M, typename Lanes, typename Rows, typename Upstream, typename Out>
MIBFAST_DEVICE void project_backward(const Lanes& lanes, const Rows& z, const Upstream& g, int m, int d, bool aligned,
                                     const double* inverse, double* small, const Out& out, bool kept) {
    constexpr int L = LEADING<M>, W = WIDTH<T, 2 * M>;
    double *r = small, *c = small + M * L, *e = small + 2 * M * L, *p = small;
    products<T, M, false>(lanes, z, g, m, d, aligned, r);
    lanes.each(m, [&](int t) {
        const double scale = -1.0 / inverse[t * m + t];
        double own = 0.0;
        for (int k = 0; k < m; ++k) own += inverse[t * m + k] * r[k * L + t];
        for (int k = 0; k < m; ++k) {
            double x = 0.0;
            for (int other = 0; other < m; ++other) x += inverse[k * m + other] * r[other * L + t];
            const double ck = k == t ? 0.0 : inverse[k * m + t] * scale;
            c[k * L + t] = ck;
            e[k * L + t] = k == t ? 0.0 : x + ck * own;
        }
    });
    lanes.each(m, [&](int k) {
        for (int other = 0; other < m; ++other) {
            double x = e[other * L + k] + e[k * L + other];
            for (int t = 0; t < m; ++t) {
                x -= c[k * L + t] * e[other * L + t];
                x -= e[k * L + t] * c[other * L + t];
            }
            p[k * L + other] = x;
        }
    });
    lanes.each((d + W - 1) / W, [&](int piece) {
        const int j = piece * W;
        double x[M][W], y[M][W];
        MIBFAST_UNROLL
        for (int k = 0; k < M; ++k) {
            if (k >= m) continue;
            const Vector<T, W> a = load<W>(z(k), j, d, aligned), b = load<W>(g(k), j, d, aligned);
            MIBFAST_UNROLL
            for (int i = 0; i < W; ++i) {
                x[k][i] = widened(a.x[i]);
                y[k][i] = widened(b.x[i]);
            }
        }
        MIBFAST_UNROLL
        for (int k = 0; k < M; ++k) {
            if (k >= m) continue;
            double sum[W] = {};
            MIBFAST_UNROLL
            for (int t = 0; t < M; ++t) {
                if (t >= m) continue;
                const double ofz = p[k * L + t], ofg = c[k * L + t];
                MIBFAST_UNROLL
                for (int i = 0; i < W; ++i) {
                    // Two statements, two multiply-adds.
                    sum[i] += ofz * x[t][i];
                    if (k != t) sum[i] += ofg * y[t][i];
                }
            }
            Vector<T, W> result;
            MIBFAST_UNROLL
            for (int i = 0; i < W; ++i) result.x[i] = rounded<T>(sum[i]);
            if (kept) store<W>(result, out(k), j, d, aligned);
        }
    });
}

}  // namespace mibfast::projection
