// The Python module mibfast._cuda: kernels by addresses, sizes, strides and a stream, so that one build serves every
// torch. Callers keep tensors alive and their device current.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "projection_launch.h"

namespace py = pybind11;

namespace {

using mibfast::projection::Backward;
using mibfast::projection::Forward;
using mibfast::projection::Layout;

using Addresses = std::vector<uintptr_t>;
using Strides = std::vector<int64_t>;

enum class Dtype { float64, float32, float16, bfloat16 };

int64_t size_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

// What is launched, for errors.
struct Launch {
    const char* operation;
    int m;
    int64_t n, d;
    Dtype dtype;
    int device;

    std::string described() const {
        static const char* const names[] = {"float64", "float32", "float16", "bfloat16"};
        return std::string(operation) + ": M = " + std::to_string(m) + ", N = " + std::to_string(n) +
               ", d = " + std::to_string(d) + ", " + names[static_cast<int>(dtype)] + ", on cuda:" +
               std::to_string(device);
    }

    [[noreturn]] void invalid(const std::string& why) const { throw std::invalid_argument(described() + ": " + why); }

    void check(cudaError_t error, const char* what) const {
        if (error == cudaSuccess) return;
        cudaGetLastError();  // an error that passes must not show up in the next call
        throw std::runtime_error(described() + ": " + what + ": " + cudaGetErrorName(error) + ": " +
                                 cudaGetErrorString(error));
    }

    void check_sizes() const {
        if (m < 2 || m > mibfast::projection::MOST_MODALITIES)
            invalid("M must be from 2 to " + std::to_string(mibfast::projection::MOST_MODALITIES));
        if (n < 1) invalid("N must be positive");
        if (d < 1 || d > int64_t{1} << 30) invalid("d must be from 1 to 2^30");
        if (device < 0) invalid("the device must be the index of one");
    }

    void check_address(const char* argument, uintptr_t address) const {
        if (address == 0) invalid(std::string(argument) + " is a null pointer");
        if (address % size_of(dtype) != 0) invalid(std::string(argument) + " is not a multiple of its numbers' size");
    }

    // Fills `pointers` and returns whether rows can be read and written 16 bytes at a time.
    bool take_rows(const char* argument, const Addresses& addresses, const Strides& strides, const void** pointers,
                   int64_t* steps) const {
        if (addresses.size() != static_cast<size_t>(m) || strides.size() != static_cast<size_t>(m))
            invalid(std::string(argument) + " must be M addresses and strides, got " +
                    std::to_string(addresses.size()) + " and " + std::to_string(strides.size()));
        bool aligned = d * size_of(dtype) % 16 == 0;
        for (int k = 0; k < m; ++k) {
            check_address(argument, addresses[k]);
            if (strides[k] < 0) invalid(std::string(argument) + " has a negative stride");
            aligned = aligned && addresses[k] % 16 == 0 && strides[k] * size_of(dtype) % 16 == 0;
            pointers[k] = reinterpret_cast<const void*>(addresses[k]);
            steps[k] = strides[k];
        }
        return aligned;
    }

    Layout layout(int rows, int matrices, bool aligned) const {
        int shared_bytes = 0;
        check(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device),
              "its shared memory could not be asked for");
        return mibfast::projection::layout(m, rows, matrices, d, size_of(dtype), aligned, shared_bytes);
    }

    void start(const void* kernel, const Layout& layout, void* argument, uintptr_t stream) const {
        const size_t bytes = layout.block_bytes();
        // Past 48 KiB of shared memory a kernel has to ask.
        if (bytes > 49152)
            check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
                  "the kernel could not be given its shared memory");
        const int64_t blocks = (n + layout.block_samples() - 1) / layout.block_samples();
        void* arguments[] = {argument};
        check(cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks < INT32_MAX ? blocks : INT32_MAX)),
                               dim3(32 * layout.warps), arguments, bytes, reinterpret_cast<cudaStream_t>(stream)),
              "the kernel could not be launched");
    }
};

template <typename Select>
const void* of_dtype(Dtype dtype, const Select& select) {
    switch (dtype) {
        case Dtype::float64: return select(double{});
        case Dtype::float32: return select(float{});
        case Dtype::float16: return select(__half{});
        default: return select(__nv_bfloat16{});
    }
}

void leave_one_out(int device, Dtype dtype, const Addresses& z, const Strides& strides, int64_t n, int64_t d,
                   double ridge, uintptr_t out, uintptr_t inverse, uintptr_t stream) {
    const Launch launch{"leave_one_out_projection", static_cast<int>(z.size()), n, d, dtype, device};
    launch.check_sizes();
    if (!(ridge >= 0.0)) launch.invalid("ridge must not be negative, got " + std::to_string(ridge));
    launch.check_address("out", out);
    launch.check_address("inverse", inverse);
    Forward arguments{};
    arguments.aligned = launch.take_rows("z", z, strides, arguments.z, arguments.strides) && out % 16 == 0;
    arguments.out = reinterpret_cast<void*>(out);
    arguments.inverse = reinterpret_cast<double*>(inverse);
    arguments.n = n, arguments.m = launch.m, arguments.d = static_cast<int>(d), arguments.ridge = ridge;
    launch.check(cudaSetDevice(device), "the device could not be made the current one");
    const Layout layout = launch.layout(launch.m, mibfast::projection::FORWARD_MATRICES, arguments.aligned);
    arguments.lanes = layout.lanes, arguments.sample_bytes = static_cast<int>(layout.sample_bytes);
    const void* kernel = of_dtype(dtype, [&](auto x) {
        return mibfast::projection::forward_kernel<decltype(x)>(launch.m, layout.staged);
    });
    launch.start(kernel, layout, &arguments, stream);
}

void leave_one_out_backward(int device, Dtype dtype, const Addresses& upstream, const Strides& upstream_strides,
                            const Addresses& z, const Strides& strides, int64_t n, int64_t d, uintptr_t inverse,
                            const Addresses& gradients, uintptr_t stream) {
    const Launch launch{"leave_one_out_projection, backward", static_cast<int>(z.size()), n, d, dtype, device};
    launch.check_sizes();
    launch.check_address("inverse", inverse);
    Backward arguments{};
    int64_t unused[mibfast::projection::MOST_MODALITIES];
    const void* outputs[mibfast::projection::MOST_MODALITIES];
    const bool aligned[] = {
        launch.take_rows("z", z, strides, arguments.z, arguments.strides),
        launch.take_rows("upstream", upstream, upstream_strides, arguments.upstream, arguments.upstream_strides),
        launch.take_rows("gradients", gradients, Strides(gradients.size(), d), outputs, unused),
    };
    for (int k = 0; k < launch.m; ++k) arguments.gradients[k] = const_cast<void*>(outputs[k]);
    arguments.aligned = aligned[0] && aligned[1] && aligned[2];
    arguments.inverse = reinterpret_cast<const double*>(inverse);
    arguments.n = n, arguments.m = launch.m, arguments.d = static_cast<int>(d);
    launch.check(cudaSetDevice(device), "the device could not be made the current one");
    const Layout layout = launch.layout(2 * launch.m, mibfast::projection::BACKWARD_MATRICES, arguments.aligned);
    arguments.lanes = layout.lanes, arguments.sample_bytes = static_cast<int>(layout.sample_bytes);
    const void* kernel = of_dtype(dtype, [&](auto x) {
        return mibfast::projection::backward_kernel<decltype(x)>(launch.m, layout.staged);
    });
    launch.start(kernel, layout, &arguments, stream);
}

// CUDA versions as in 13000 for 13.0; 0 where no driver is installed.
int driver_version() {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
    module.attr("ARCHITECTURES") = py::tuple(py::str(MIBFAST_ARCHITECTURES).attr("split")());
    module.attr("RUNTIME_VERSION") = CUDART_VERSION;
    module.attr("MOST_MODALITIES") = mibfast::projection::MOST_MODALITIES;
    module.def("driver_version", &driver_version);
    py::enum_<Dtype>(module, "Dtype")
        .value("float64", Dtype::float64)
        .value("float32", Dtype::float32)
        .value("float16", Dtype::float16)
        .value("bfloat16", Dtype::bfloat16);
    module.def("leave_one_out", &leave_one_out, py::arg("device"), py::arg("dtype"), py::arg("z"), py::arg("strides"),
               py::arg("n"), py::arg("d"), py::arg("ridge"), py::arg("out"), py::arg("inverse"), py::arg("stream"));
    module.def("leave_one_out_backward", &leave_one_out_backward, py::arg("device"), py::arg("dtype"),
               py::arg("upstream"), py::arg("upstream_strides"), py::arg("z"), py::arg("strides"), py::arg("n"),
               py::arg("d"), py::arg("inverse"), py::arg("gradients"), py::arg("stream"));
}
