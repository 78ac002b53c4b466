// Leave-one-out projections of a batch: 4 to 32 lanes a sample, the arithmetic of projection.h.
//
// A sample's embeddings come in once, 16 bytes a lane at a time, by asynchronous copies into shared memory; its Gram
// matrix is summed in registers, each lane over its share of the numbers, and then across lanes; the combinations read
// shared memory again and go out 16 bytes at a time. Rows that are not aligned to 16 bytes, or too long for shared
// memory, are read from global memory both times.
//
// Cost for n samples of m embeddings in d dimensions: 2 m n d numbers moved forward (and 8 m^2 n bytes for H), 3 m n d
// backward; m (m + 1) / 2 + m (m - 1) float64 multiply-adds and 3 m conversions for each of n d columns forward. At
// m = 5, n = 262,144, d = 512 in float32: 5.4 GB, 1.13 ms at an H200's 4.8 TB/s by its datasheet, 1.25 ms at the
// 4.3 TB/s of a copy; multiply-adds take 0.3 ms and conversions, 16 a cycle and multiprocessor, 0.6 ms beside that.
// Prediction: bound by memory, 1.5 ms, 80% of a copy's rate. bfloat16 moves half and converts as many: 1.0 ms, 60%.
// Measured: not run.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>

#include "projection_launch.h"

namespace mibfast::projection {

template <>
__device__ __forceinline__ double widened(__half x) {
    return __half2float(x);
}
template <>
__device__ __forceinline__ double widened(__nv_bfloat16 x) {
    return __bfloat162float(x);
}
// By way of float32, as the other backends round.
template <>
__device__ __forceinline__ __half rounded(double x) {
    return __float2half_rn(static_cast<float>(x));
}
template <>
__device__ __forceinline__ __nv_bfloat16 rounded(double x) {
    return __float2bfloat16_rn(static_cast<float>(x));
}

// `count` neighbouring lanes of a warp; all lanes of the warp take part in every call.
struct WarpLanes {
    int lane, count;

    template <typename F>
    __device__ __forceinline__ void each(int n, const F& f) const {
        for (int i = lane; i < n; i += count) f(i);
        __syncwarp();
    }

    template <int N, typename Part, typename Take>
    __device__ __forceinline__ void sum(const Part& part, const Take& take) const {
        double sums[N] = {};
        part(lane, count, sums);
        for (int apart = count / 2; apart > 0; apart /= 2) {
            MIBFAST_UNROLL
            for (int i = 0; i < N; ++i) sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], apart);
        }
        if (lane == 0) take(sums);
        __syncwarp();
    }
};

// Copies m rows of d numbers to shared memory, one behind the other.
template <typename T, int M, typename Rows>
__device__ __forceinline__ void stage(const WarpLanes& lanes, const Rows& rows, int m, int d, T* staged) {
    constexpr int W = 16 / sizeof(T);
    MIBFAST_UNROLL
    for (int k = 0; k < M; ++k) {
        if (k >= m) continue;
        const T* row = rows(k);
        for (int j = lanes.lane * W; j < d; j += lanes.count * W)
            __pipeline_memcpy_async(staged + int64_t{k} * d + j, row + j, 16);
    }
}

__device__ __forceinline__ void wait_for_stages() {
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncwarp();
}

template <int M>
constexpr int FORWARD_NUMBERS = numbers_of_matrices(FORWARD_MATRICES, M);
template <int M>
constexpr int BACKWARD_NUMBERS = numbers_of_matrices(BACKWARD_MATRICES, M);

extern __shared__ __align__(16) unsigned char shared[];

template <typename T, int M, bool staged>
__global__ void __launch_bounds__(128) forward(const __grid_constant__ Forward a) {
    const int m = modalities<M>(a.m), d = a.d, samples = blockDim.x / a.lanes, slot = threadIdx.x / a.lanes;
    const WarpLanes lanes{static_cast<int>(threadIdx.x) & (a.lanes - 1), a.lanes};
    double* small = reinterpret_cast<double*>(shared + static_cast<size_t>(slot) * a.sample_bytes);
    T* copy = reinterpret_cast<T*>(small + FORWARD_NUMBERS<M>);
    for (int64_t first = int64_t{blockIdx.x} * samples; first < a.n; first += int64_t{gridDim.x} * samples) {
        // Lanes without a sample go along with the last one and keep nothing.
        const bool kept = first + slot < a.n;
        const int64_t i = kept ? first + slot : a.n - 1;
        const auto rows = [&](int k) { return static_cast<const T*>(a.z[k]) + i * a.strides[k]; };
        const auto out = [&](int t) { return static_cast<T*>(a.out) + (t * a.n + i) * d; };
        double* inverse = a.inverse + i * m * m;
        if constexpr (staged) {
            stage<T, M>(lanes, rows, m, d, copy);
            wait_for_stages();
            const auto copies = [&](int k) { return copy + k * d; };
            project<T, M>(lanes, copies, m, d, true, a.ridge, small, inverse, out, kept);
        } else {
            project<T, M>(lanes, rows, m, d, a.aligned, a.ridge, small, inverse, out, kept);
        }
    }
}

template <typename T, int M, bool staged>
__global__ void __launch_bounds__(128) backward(const __grid_constant__ Backward a) {
    const int m = modalities<M>(a.m), d = a.d, samples = blockDim.x / a.lanes, slot = threadIdx.x / a.lanes;
    const WarpLanes lanes{static_cast<int>(threadIdx.x) & (a.lanes - 1), a.lanes};
    double* small = reinterpret_cast<double*>(shared + static_cast<size_t>(slot) * a.sample_bytes);
    T* copy = reinterpret_cast<T*>(small + BACKWARD_NUMBERS<M>);
    for (int64_t first = int64_t{blockIdx.x} * samples; first < a.n; first += int64_t{gridDim.x} * samples) {
        const bool kept = first + slot < a.n;
        const int64_t i = kept ? first + slot : a.n - 1;
        const auto rows = [&](int k) { return static_cast<const T*>(a.z[k]) + i * a.strides[k]; };
        const auto upstream = [&](int t) { return static_cast<const T*>(a.upstream[t]) + i * a.upstream_strides[t]; };
        const auto out = [&](int k) { return static_cast<T*>(a.gradients[k]) + i * d; };
        const double* inverse = a.inverse + i * m * m;
        if constexpr (staged) {
            stage<T, M>(lanes, rows, m, d, copy);
            stage<T, M>(lanes, upstream, m, d, copy + m * d);
            wait_for_stages();
            const auto copies = [&](int k) { return copy + k * d; };
            const auto upstream_copies = [&](int t) { return copy + (m + t) * d; };
            project_backward<T, M>(lanes, copies, upstream_copies, m, d, true, inverse, small, out, kept);
        } else {
            project_backward<T, M>(lanes, rows, upstream, m, d, a.aligned, inverse, small, out, kept);
        }
    }
}

template <typename T>
const void* forward_kernel(int m, bool staged) {
    const auto of = [&](auto size) {
        constexpr int M = decltype(size)::value;
        return staged ? reinterpret_cast<const void*>(&forward<T, M, true>)
                      : reinterpret_cast<const void*>(&forward<T, M, false>);
    };
    return for_modalities(m, of);
}

template <typename T>
const void* backward_kernel(int m, bool staged) {
    const auto of = [&](auto size) {
        constexpr int M = decltype(size)::value;
        return staged ? reinterpret_cast<const void*>(&backward<T, M, true>)
                      : reinterpret_cast<const void*>(&backward<T, M, false>);
    };
    return for_modalities(m, of);
}

}  // namespace mibfast::projection
