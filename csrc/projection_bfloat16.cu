#include "projection.cuh"

namespace mibfast::projection {

template const void* forward_kernel<__nv_bfloat16>(int, bool);
template const void* backward_kernel<__nv_bfloat16>(int, bool);

}  // namespace mibfast::projection
