#include "projection.cuh"

namespace mibfast::projection {

template const void* forward_kernel<float>(int, bool);
template const void* backward_kernel<float>(int, bool);

}  // namespace mibfast::projection
