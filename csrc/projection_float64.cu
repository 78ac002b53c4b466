#include "projection.cuh"

namespace mibfast::projection {

template const void* forward_kernel<double>(int, bool);
template const void* backward_kernel<double>(int, bool);

}  // namespace mibfast::projection
