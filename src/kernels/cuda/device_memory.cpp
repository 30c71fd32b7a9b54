// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/device_memory.h"

#include <mlx/backend/cuda/allocator.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "common/mlx_buffer.h"
#include "kernels/cuda/driver.h"

namespace vllm_metal::gpu {

namespace {

using mx::cu::CudaBuffer;

// Kept for outputs to come; more is freed.
constexpr size_t kMaxFreeBytes = size_t{512} << 20;

// Buffers that no array has. Whoever had one was held by MLX until its kernels had run, or was
// dropped on the stream that the next owner runs on. Never destroyed, as arrays may outlive it.
class FreeBuffers {
 public:
  CudaBuffer* take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto found = buffers_.lower_bound(bytes);
    if (found == buffers_.end() || found->first > bytes + bytes / 4) return nullptr;
    CudaBuffer* buffer = found->second;
    total_ -= found->first;
    buffers_.erase(found);
    return buffer;
  }

  // False: there is enough already.
  bool give(CudaBuffer* buffer) {
    const std::lock_guard lock(mutex_);
    if (total_ + buffer->size > kMaxFreeBytes) return false;
    total_ += buffer->size;
    buffers_.emplace(buffer->size, buffer);
    return true;
  }

 private:
  std::mutex mutex_;
  std::multimap<size_t, CudaBuffer*> buffers_;
  size_t total_ = 0;
};

FreeBuffers& free_buffers() {
  static auto* buffers = new FreeBuffers();
  return *buffers;
}

// Read on the host, MLX has moved it to memory that both reach: managed, or pinned where there is
// no managed memory.
void free_unified(void* data) {
  unsigned is_managed = 0;
  cuPointerGetAttribute(&is_managed, CU_POINTER_ATTRIBUTE_IS_MANAGED,
                        reinterpret_cast<CUdeviceptr>(data));
  if (is_managed != 0) {
    cuMemFree(reinterpret_cast<CUdeviceptr>(data));
  } else {
    cuMemFreeHost(data);
  }
}

// Called from destructors: errors, as at the end of the process, are not looked at.
void release(void* pointer) {
  auto* buffer = static_cast<CudaBuffer*>(pointer);
  const bool on_device = buffer->device >= 0;
  if (on_device && free_buffers().give(buffer)) return;
  if (on_device) {
    cuMemFreeAsync(reinterpret_cast<CUdeviceptr>(buffer->data), CU_STREAM_LEGACY);
  } else {
    free_unified(buffer->data);
  }
  delete buffer;
}

size_t rounded_up(size_t bytes) {
  const size_t step = bytes < (size_t{1} << 20) ? 4096 : size_t{1} << 20;
  return (bytes + step - 1) / step * step;
}

}  // namespace

void allocate_on_device(mx::array& output, int device, CUstream stream) {
  const size_t bytes = rounded_up(std::max<size_t>(output.nbytes(), 1));
  CudaBuffer* buffer = free_buffers().take(bytes);
  if (buffer == nullptr) {
    CUdeviceptr data = 0;
    check_driver("cuMemAllocAsync", cuMemAllocAsync(&data, bytes, stream));
    buffer = new CudaBuffer{reinterpret_cast<void*>(data), bytes, device};
  }
  adopt_buffer(output, buffer, release);
}

}  // namespace vllm_metal::gpu
