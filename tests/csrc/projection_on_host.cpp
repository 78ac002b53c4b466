// The arithmetic of csrc/projection.h on the host, a batch at a time, for tests/kernels/test_cuda_projection.py.
//
// Lanes are gone through one after another, backwards where asked: results must not change, or one lane reads what
// another writes. Their sums are added as a warp adds them.
#include "projection.h"
#include "projection_launch.h"

namespace {

using namespace mibfast::projection;

struct HostLanes {
    int count;
    bool reversed;

    template <typename F>
    void each(int n, const F& f) const {
        for (int i = 0; i < n; ++i) f(reversed ? n - 1 - i : i);
    }

    template <int N, typename Part, typename Take>
    void sum(const Part& part, const Take& take) const {
        double sums[32][N] = {};
        for (int lane = 0; lane < count; ++lane) part(lane, count, sums[lane]);
        for (int apart = count / 2; apart > 0; apart /= 2)
            for (int lane = 0; lane < apart; ++lane)
                for (int i = 0; i < N; ++i) sums[lane][i] += sums[lane + apart][i];
        take(sums[0]);
    }
};

template <typename T>
void forward_on_host(const T* const* z, const int64_t* strides, T* out, double* inverse, int m, int64_t n, int d,
                     double ridge, bool aligned, HostLanes lanes) {
    for_modalities(m, [&](auto size) {
        constexpr int M = decltype(size)::value;
        double small[numbers_of_matrices(FORWARD_MATRICES, M)];
        for (int64_t i = 0; i < n; ++i) {
            for (double& x : small) x = NAN;
            const auto row = [&](int k) { return z[k] + i * strides[k]; };
            const auto result = [&](int t) { return out + (t * n + i) * d; };
            double* own = inverse + i * m * m;
            project<T, M>(lanes, row, modalities<M>(m), d, aligned, ridge, small, own, result, true);
        }
        return 0;
    });
}

template <typename T>
void backward_on_host(const T* const* z, const int64_t* strides, const T* const* upstream,
                      const int64_t* upstream_strides, const double* inverse, T* const* gradients, int m, int64_t n,
                      int d, bool aligned, HostLanes lanes) {
    for_modalities(m, [&](auto size) {
        constexpr int M = decltype(size)::value;
        double small[numbers_of_matrices(BACKWARD_MATRICES, M)];
        for (int64_t i = 0; i < n; ++i) {
            for (double& x : small) x = NAN;
            const auto row = [&](int k) { return z[k] + i * strides[k]; };
            const auto g = [&](int t) { return upstream[t] + i * upstream_strides[t]; };
            const auto result = [&](int k) { return gradients[k] + i * d; };
            const double* own = inverse + i * m * m;
            project_backward<T, M>(lanes, row, g, modalities<M>(m), d, aligned, own, small, result, true);
        }
        return 0;
    });
}

}  // namespace

extern "C" {

void forward_float32(const float* const* z, const int64_t* strides, float* out, double* inverse, int m, int64_t n,
                     int d, double ridge, int aligned, int lanes, int reversed) {
    forward_on_host(z, strides, out, inverse, m, n, d, ridge, aligned != 0, HostLanes{lanes, reversed != 0});
}

void forward_float64(const double* const* z, const int64_t* strides, double* out, double* inverse, int m, int64_t n,
                     int d, double ridge, int aligned, int lanes, int reversed) {
    forward_on_host(z, strides, out, inverse, m, n, d, ridge, aligned != 0, HostLanes{lanes, reversed != 0});
}

void backward_float32(const float* const* z, const int64_t* strides, const float* const* upstream,
                      const int64_t* upstream_strides, const double* inverse, float* const* gradients, int m,
                      int64_t n, int d, int aligned, int lanes, int reversed) {
    backward_on_host(z, strides, upstream, upstream_strides, inverse, gradients, m, n, d, aligned != 0,
                     HostLanes{lanes, reversed != 0});
}

void backward_float64(const double* const* z, const int64_t* strides, const double* const* upstream,
                      const int64_t* upstream_strides, const double* inverse, double* const* gradients, int m,
                      int64_t n, int d, int aligned, int lanes, int reversed) {
    backward_on_host(z, strides, upstream, upstream_strides, inverse, gradients, m, n, d, aligned != 0,
                     HostLanes{lanes, reversed != 0});
}

// lanes, warps, staged, bytes of a sample and of a block.
void layout_of(int m, int rows, int matrices, int64_t d, int64_t size, int aligned, int64_t shared_bytes,
               int64_t* found) {
    const Layout result = layout(m, rows, matrices, d, size, aligned != 0, shared_bytes);
    found[0] = result.lanes;
    found[1] = result.warps;
    found[2] = result.staged;
    found[3] = static_cast<int64_t>(result.sample_bytes);
    found[4] = static_cast<int64_t>(result.block_bytes());
}
}
