// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mlx/backend/cpu/encoder.h>
#include <mlx/primitives.h>

#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "common/mlx.h"
#include "common/mlx_buffer.h"
#include "common/text.h"
#include "kernels/cpu/kernel_errors.h"
#include "kernels/cpu/simd/element_type.h"
#include "kernels/cpu/strided.h"

namespace vllm_metal::cpu {

// Base of the graph nodes that our CPU kernels compute. Its eval_cpu runs on the thread that
// evaluates, before the inputs are computed: it may look at shapes and strides and take pointers,
// but of inputs that a GPU computes (see weak_handle); the work itself goes into `dispatch`.
class CpuPrimitive : public mx::Primitive {
 public:
  CpuPrimitive() : mx::Primitive(mx::default_stream(mx::Device::cpu)) {}

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error(text("[", name(), "] is a CPU kernel and cannot run on a GPU."));
  }

 protected:
  // Runs `task` on the stream's thread, after the tasks of all inputs. MLX holds the buffers of
  // inputs and outputs until then; temporaries are for `hold`. What `task` throws is noted for its
  // step, or kept by MLX for the stream's next check_error; what comes after it runs all the same.
  template <typename Task>
  void dispatch(Task&& task) {
    mx::cpu::get_command_encoder(stream()).dispatch(
        [op = name(), errors = current_kernel_errors(), task = std::forward<Task>(task)]() mutable {
          try {
            run(op, task);
          } catch (...) {
            if (errors == nullptr) throw;
            errors->note(std::current_exception());
          }
        });
  }
  void hold(mx::array temporary) {
    mx::cpu::get_command_encoder(stream()).add_temporary(std::move(temporary));
  }

  // A cache as an output that is written in place, by the op named `op`.
  static void alias_cache(const char* op, mx::array& output, const mx::array& input) {
    if (!input.flags().row_contiguous)
      throw std::runtime_error(text("[", op, "] the caches must be row contiguous to be written."));
    alias_output(output, input);
  }

  // `x` where its rows lie evenly (see Rows), else a copy, made before what is dispatched next.
  mx::array with_even_rows(const mx::array& x) { return has_even_rows(x) ? x : copied(x); }
  mx::array with_contiguous_last_dimension(const mx::array& x) {
    return has_contiguous_last_dimension(x) ? x : copied(x);
  }
  mx::array row_contiguous(const mx::array& x) { return x.flags().row_contiguous ? x : copied(x); }

 private:
  template <typename Task>
  static void run(const char* op, Task& task) {
    try {
      task();
    } catch (const std::bad_alloc&) {
      throw std::runtime_error(text("[", op, "] cannot allocate its working memory."));
    }
  }

  mx::array copied(const mx::array& x) {
    mx::array copy = uninitialized(x.shape(), x.dtype());
    dispatch(StridedCopy(x, copy));
    hold(copy);
    return copy;
  }
};

// Of float32, float16 and bfloat16, which the ops have checked for.
inline ElementType element_type_of(mx::Dtype dtype) {
  if (dtype == mx::float32) return ElementType::kFloat32;
  return dtype == mx::float16 ? ElementType::kFloat16 : ElementType::kBfloat16;
}

}  // namespace vllm_metal::cpu
