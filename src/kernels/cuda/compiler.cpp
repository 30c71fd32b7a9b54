// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/compiler.h"

#include <dlfcn.h>
#include <nvrtc.h>

#include <filesystem>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "common/text.h"
#include "config/env.h"
#include "kernels/cuda/driver.h"
#include "kernels/gpu/kernel_source.h"

namespace vllm_metal::gpu {

namespace {

namespace fs = std::filesystem;

void check_compiler(const char* call, nvrtcResult result) {
  if (result != NVRTC_SUCCESS)
    throw std::runtime_error(text("[cuda] ", call, " failed: ", nvrtcGetErrorString(result), "."));
}

// Where CUDA's own headers are: beside MLX's package, as its wheel installs them, or a toolkit's.
fs::path cuda_headers() {
  std::vector<fs::path> folders;
  Dl_info mlx{};
  if (dladdr(reinterpret_cast<const void*>(&mx::default_device), &mlx) != 0) {
    const fs::path packages = fs::path(mlx.dli_fname).parent_path().parent_path().parent_path();
    folders.push_back(packages / "nvidia" / text("cu", CUDA_VERSION / 1000) / "include");
    folders.push_back(packages / "nvidia" / "cuda_runtime" / "include");
  }
  if (const std::string home = cuda_home(); !home.empty())
    folders.push_back(fs::path(home) / "include");
  folders.emplace_back("/usr/local/cuda/include");
  for (const fs::path& folder : folders) {
    if (fs::exists(folder / "cuda_fp16.h")) return folder;
  }
  throw std::runtime_error(text("[cuda] CUDA's headers were not found in ", join(folders),
                                ". Install the package nvidia-cuda-runtime or set CUDA_HOME."));
}

std::string architecture() {
  CUdevice device = 0;
  int major = 0, minor = 0;
  check_driver("cuCtxGetDevice", cuCtxGetDevice(&device));
  check_driver("cuDeviceGetAttribute",
               cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device));
  check_driver("cuDeviceGetAttribute",
               cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device));
  return text("--gpu-architecture=sm_", major, minor);
}

// A text that is compiled, and destroyed with this.
class Program {
 public:
  explicit Program(const KernelName& name) : expression_(name.expression()) {
    const std::string source = kernel_source(KernelTarget::kCuda, name);
    check_compiler("nvrtcCreateProgram",
                   nvrtcCreateProgram(&program_, source.c_str(),
                                      (name.identifier() + ".cu").c_str(), 0, nullptr, nullptr));
  }
  ~Program() { nvrtcDestroyProgram(&program_); }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void compile() {
    check_compiler("nvrtcAddNameExpression", nvrtcAddNameExpression(program_, expression_.c_str()));
    static const std::string include = text("--include-path=", cuda_headers().string());
    const std::string target = architecture();
    const char* options[] = {"--std=c++17", target.c_str(), include.c_str()};
    if (nvrtcCompileProgram(program_, 3, options) == NVRTC_SUCCESS) return;
    size_t size = 0;
    check_compiler("nvrtcGetProgramLogSize", nvrtcGetProgramLogSize(program_, &size));
    std::string log(size, '\0');
    check_compiler("nvrtcGetProgramLog", nvrtcGetProgramLog(program_, log.data()));
    throw std::runtime_error(text("[cuda] ", expression_, " does not compile: ", log));
  }

  std::vector<char> binary() const {
    size_t size = 0;
    check_compiler("nvrtcGetCUBINSize", nvrtcGetCUBINSize(program_, &size));
    std::vector<char> result(size);
    check_compiler("nvrtcGetCUBIN", nvrtcGetCUBIN(program_, result.data()));
    return result;
  }

  const char* mangled_name() const {
    const char* result = nullptr;
    check_compiler("nvrtcGetLoweredName",
                   nvrtcGetLoweredName(program_, expression_.c_str(), &result));
    return result;
  }

 private:
  std::string expression_;
  nvrtcProgram program_ = nullptr;
};

CUfunction compile(const KernelName& name) {
  Program program(name);
  program.compile();
  CUmodule module = nullptr;  // never unloaded: kernels may run until the process ends
  CUfunction kernel = nullptr;
  check_driver("cuModuleLoadData", cuModuleLoadData(&module, program.binary().data()));
  check_driver("cuModuleGetFunction", cuModuleGetFunction(&kernel, module, program.mangled_name()));
  return kernel;
}

}  // namespace

CUfunction compiled_kernel(const KernelName& name) {
  static std::mutex mutex;
  static auto* kernels = new std::map<std::pair<CUcontext, std::string>, CUfunction>();
  CUcontext context = nullptr;
  check_driver("cuCtxGetCurrent", cuCtxGetCurrent(&context));
  const std::lock_guard lock(mutex);
  const auto [entry, is_new] = kernels->try_emplace({context, name.expression()}, nullptr);
  if (entry->second == nullptr) entry->second = compile(name);
  return entry->second;
}

}  // namespace vllm_metal::gpu
