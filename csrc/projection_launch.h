// What the kernels of projection.cuh are given, and how a launch is laid out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "projection.h"

namespace mibfast::projection {

struct Layout {
    int lanes;            // that share a sample: a power of two up to 32
    int warps;            // of a block
    bool staged;          // samples are copied to shared memory, which they are read from twice
    size_t sample_bytes;  // of shared memory

    size_t block_bytes() const { return sample_bytes * (32 / lanes) * warps; }
    int block_samples() const { return 32 / lanes * warps; }
};

// For samples of `rows` rows of d numbers of `size` bytes, which need `matrices` of m x m numbers beside them, on
// multiprocessors with `shared_bytes` of shared memory.
inline Layout layout(int m, int rows, int matrices, int64_t d, size_t size, bool aligned, size_t shared_bytes) {
    const size_t small = numbers_of_matrices(matrices, compiled_for(m)) * sizeof(double);
    const size_t sample = rows * d * size;
    Layout result{4, 4, false, small};
    // With four pieces of 16 bytes a row, a lane does more than its part of the sums over lanes costs; and columns of
    // the small matrices are done side by side where there is a lane for each.
    while (result.lanes < 32 && (result.lanes < m || d * static_cast<int64_t>(size) >= 128 * result.lanes))
        result.lanes *= 2;
    // Fewer than four warps on a multiprocessor cannot hide how long memory takes: the second read goes to the L2 then.
    const size_t warp_bytes = (small + sample) * (32 / result.lanes);
    if (aligned && warp_bytes * 4 + 4096 <= shared_bytes) {
        result.staged = true;
        result.sample_bytes += sample;
        while (result.warps > 1 && result.block_bytes() > 49152) result.warps /= 2;
    }
    return result;
}

struct Forward {
    const void* z[MOST_MODALITIES];
    int64_t strides[MOST_MODALITIES];  // between rows, in numbers
    void* out;                         // [m, n, d]
    double* inverse;                   // [n, m, m]
    int64_t n;
    double ridge;
    int m, d, lanes;
    int sample_bytes;
    bool aligned;
};

struct Backward {
    const void* z[MOST_MODALITIES];
    const void* upstream[MOST_MODALITIES];
    void* gradients[MOST_MODALITIES];  // [n, d] each
    int64_t strides[MOST_MODALITIES], upstream_strides[MOST_MODALITIES];
    const double* inverse;
    int64_t n;
    int m, d, lanes;
    int sample_bytes;
    bool aligned;
};

// The kernel of a type of numbers for m modalities, to be launched with one `Forward` or `Backward`.
template <typename T>
const void* forward_kernel(int m, bool staged);
template <typename T>
const void* backward_kernel(int m, bool staged);

}  // namespace mibfast::projection
