// SPDX-License-Identifier: Apache-2.0
// The harness finds what it is there to find, in kernels written as those of src/kernels/gpu.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gpu/prelude_harness.h"

namespace gpu_harness {
namespace {

using testing::HasSubstr;

constexpr int kThreads = 64;

// The message of the KernelError that `kernel` ends in.
std::string error_of(const std::function<void()>& kernel, const Grid& grid = {1, 1, kThreads}) {
  try {
    launch(grid, 1, kernel);
  } catch (const KernelError& error) {
    return error.what();
  }
  return "no error";
}

// Each thread passes its value to the next one.
KERNEL(32)
rotate(DEVICE_BUFFER(const float, in, 0), DEVICE_BUFFER(float, out, 1) THREAD_POSITIONS) {
  DECLARE_POSITIONS
  THREADGROUP_ARRAY(float, shared, kThreads);
  const unsigned first = group_position.x * kThreads;
  shared[thread_index] = in[first + thread_index];
  THREADGROUP_BARRIER();
  out[first + thread_index] = shared[(thread_index + 1) % kThreads];
}

TEST(Harness, RunsGroupsAndBarriers) {
  std::vector<float> values(3 * kThreads);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  for (unsigned seed : {1, 2, 3}) {
    DeviceBuffer<float> in("in", values), out("out", std::vector<float>(values.size()));
    const auto input = in.input();
    const auto output = out.output();
    launch({3, 1, kThreads}, seed, [&] { rotate(input, output); });
    for (int i = 0; i < 3 * kThreads; ++i)
      EXPECT_EQ(out.values()[i], i / kThreads * kThreads + (i + 1) % kThreads);
  }
}

TEST(Harness, OrderOfThreadsFollowsTheSeed) {
  const auto order = [](unsigned seed) {
    std::vector<int> threads;
    launch({1, 1, kThreads}, seed, [&] { threads.push_back(Dispatch::current().thread()); });
    return threads;
  };
  EXPECT_EQ(order(1), order(1));
  EXPECT_NE(order(1), order(2));
  EXPECT_NE(order(2), order(3));
}

TEST(Harness, OperationsOfASimdgroup) {
  launch({2, 1, kThreads}, 5, [] {
    const int lane = lane_of_thread();
    const float own = static_cast<float>(Dispatch::current().thread());
    const float first = own - static_cast<float>(lane);
    EXPECT_EQ(simd_sum(own), 32 * first + 496);
    EXPECT_EQ(simd_max(own), first + 31);
    EXPECT_EQ(simd_shuffle_xor(own, 5), first + (lane ^ 5));
    EXPECT_EQ(simd_broadcast(own, 7), first + 7);
    EXPECT_EQ(simd_shuffle(own, 31 - lane), first + 31 - lane);
  });
  EXPECT_THAT(error_of([] { simd_shuffle_down(0.0f, 1); }), HasSubstr("no lane 32"));
}

TEST(Harness, ProductsOfMatrices) {
  std::vector<float> a(64), b(64);
  for (int i = 0; i < 64; ++i) {
    a[i] = static_cast<float>(i % 7 - 3);
    b[i] = static_cast<float>(i % 5 - 2);
  }
  DeviceBuffer<float> left("left", a), right("right", b), out("out", std::vector<float>(64));
  const auto left_in = left.input(), right_in = right.input();
  const auto output = out.output();
  launch({1, 1, 32}, 1, [&] {
    simdgroup_matrix<float, 8, 8> x, y, sum;
    simdgroup_load(x, left_in, 8);
    simdgroup_load(y, right_in, 8);
    sum.thread_elements() = {1.0f, 1.0f};
    simdgroup_multiply_accumulate(sum, x, y, sum);
    simdgroup_store(sum, output, 8);
  });
  for (int m = 0; m < 8; ++m) {
    for (int n = 0; n < 8; ++n) {
      float expected = 1;
      for (int k = 0; k < 8; ++k) expected += a[m * 8 + k] * b[k * 8 + n];
      EXPECT_EQ(out.values()[m * 8 + n], expected);
    }
  }
}

TEST(Harness, FindsBarriersThatNotAllReach) {
  const std::string error = error_of([] {
    if (Dispatch::current().thread() < 40) THREADGROUP_BARRIER();
  });
  EXPECT_THAT(error, HasSubstr("40 of 64 at threadgroup_barrier (harness_test.cpp:"));
  EXPECT_THAT(error, HasSubstr("24 have ended"));
}

TEST(Harness, FindsDifferentBarriers) {
  const auto kernel = [] {
    if (Dispatch::current().thread() < 40)
      THREADGROUP_BARRIER();
    else
      THREADGROUP_BARRIER();
  };
  EXPECT_THAT(error_of(kernel), HasSubstr("threads of one threadgroup meet at different places"));
}

TEST(Harness, FindsDivergedSimdgroups) {
  EXPECT_THAT(error_of([] {
                if (lane_of_thread() != 3) simd_sum(1.0f);
              }),
              HasSubstr("31 of 32 at simd_sum"));
  EXPECT_THAT(error_of([] {
                if (lane_of_thread() % 2 == 0)
                  simd_sum(1.0f);
                else
                  simd_max(1.0f);
              }),
              HasSubstr("threads of one simdgroup meet at different places"));
  EXPECT_THAT(error_of([] {
                // Loops of different lengths: the longer ones wait for the others.
                for (int i = 0; i < 1 + lane_of_thread() / 16; ++i) simd_sum(1.0f);
              }),
              HasSubstr("16 of 32 at simd_sum"));
}

KERNEL(32)
touch(DEVICE_BUFFER(const float, in, 0), DEVICE_BUFFER(float, out, 1), int read, int write) {
  out[write] = in[read];
}

TEST(Harness, FindsAccessesBeyondBuffers) {
  DeviceBuffer<float> in("in", std::vector<float>(4)), out("out", std::vector<float>(4));
  const auto error = [&](int read, int write) {
    const auto input = in.input();
    const auto output = out.output();
    return error_of([&] { touch(input, output, read, write); }, {1, 1, 32});
  };
  EXPECT_THAT(error(4, 0), HasSubstr("read out of bounds of in[4], which has 4 elements"));
  EXPECT_THAT(error(-1, 0), HasSubstr("read out of bounds of in[-1]"));
  EXPECT_THAT(error(0, 4), HasSubstr("write out of bounds of out[4], which has 4 elements"));
  EXPECT_THAT(error(0, 0), HasSubstr("race: write after a write"));
}

TEST(Harness, FindsAccessesBeyondThreadgroupArrays) {
  EXPECT_THAT(error_of([] {
                THREADGROUP_ARRAY(half, shared, kThreads);
                shared[Dispatch::current().thread() + 1] = half(1.0f);
              }),
              HasSubstr("write out of bounds of shared[64]"));
  EXPECT_THAT(error_of([] {
                THREADGROUP_ARRAY(float, small, 1024);
                THREADGROUP_ARRAY(float, large, 8000);
                small[0] = 0;
                large[0] = 0;
              }),
              HasSubstr("threadgroup memory: 36096 bytes with large are more than 32768"));
}

TEST(Harness, FindsRacesInThreadgroupMemory) {
  // rotate without its barrier: whichever thread comes first, one of the two is found.
  for (unsigned seed = 1; seed < 6; ++seed) {
    EXPECT_THROW(launch({1, 1, kThreads}, seed,
                        [] {
                          THREADGROUP_ARRAY(float, shared, kThreads);
                          const int thread = Dispatch::current().thread();
                          shared[thread] = 1.0f;
                          if (float(shared[(thread + 1) % kThreads]) < 0) shared[thread] = 2.0f;
                        }),
                 KernelError);
  }
  // The same array used again without a barrier between the reads and the new writes.
  EXPECT_THAT(error_of([] {
                THREADGROUP_ARRAY(float, shared, kThreads);
                const int thread = Dispatch::current().thread();
                for (int i = 0; i < 2; ++i) {
                  shared[thread] = 1.0f;
                  THREADGROUP_BARRIER();
                  if (float(shared[(thread + 1) % kThreads]) < 0) break;
                }
              }),
              HasSubstr("race: write after a read of another thread"));
  EXPECT_THAT(error_of([] {
                THREADGROUP_ARRAY(float, shared, kThreads);
                if (float(shared[0]) > 0) shared[0] = 1.0f;
              }),
              HasSubstr("read before any write of shared[0]"));
}

TEST(Harness, FindsRacesBetweenGroups) {
  DeviceBuffer<float> out("out", std::vector<float>(kThreads));
  const auto output = out.output();
  EXPECT_THAT(error_of([&] { output[Dispatch::current().thread()] = 1.0f; }, {2, 1, kThreads}),
              HasSubstr("race: write after a write of another thread"));
}

TEST(Harness, RoundsHalfAndBfloat) {
  // Every half survives the way through float.
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    if ((bits & 0x7c00) == 0x7c00 && (bits & 0x3ff) != 0) continue;  // NaN
    const auto narrow = static_cast<uint16_t>(bits);
    ASSERT_EQ(half(float(half::of_bits(narrow))).bits(), narrow);
  }
  EXPECT_EQ(float(half(1.0f + 0x1p-11f)), 1.0f);  // ties go to even
  EXPECT_EQ(float(half(1.0f + 0x3p-11f)), 1.0f + 0x1p-9f);
  EXPECT_EQ(float(half(65519.0f)), 65504.0f);
  EXPECT_EQ(float(half(65520.0f)), INFINITY);
  EXPECT_EQ(float(half(0x1p-25f)), 0.0f);
  EXPECT_EQ(float(half(0x1.8p-25f)), 0x1p-24f);
  EXPECT_EQ(half(-0.0f).bits(), 0x8000);
  EXPECT_TRUE(std::isnan(float(half(NAN))));
  EXPECT_EQ(float(bfloat(1.0f + 0x1p-8f)), 1.0f);
  EXPECT_EQ(float(bfloat(1.0f + 0x3p-8f)), 1.0f + 0x1p-6f);
  EXPECT_EQ(float(bfloat(3.4e38f)), INFINITY);
  EXPECT_TRUE(std::isnan(float(bfloat(NAN))));
}

}  // namespace
}  // namespace gpu_harness
