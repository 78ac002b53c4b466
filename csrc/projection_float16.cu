#include "projection.cuh"

namespace mibfast::projection {

template const void* forward_kernel<__half>(int, bool);
template const void* backward_kernel<__half>(int, bool);

}  // namespace mibfast::projection
