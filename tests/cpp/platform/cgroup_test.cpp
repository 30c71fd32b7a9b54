// SPDX-License-Identifier: Apache-2.0
// Limits of control groups, in folders that look like those of Linux.
#include "platform/cgroup.h"

#include <gtest/gtest.h>

#include "support/temp_dir.h"

namespace vllm_metal {
namespace {

class Cgroup : public ::testing::Test {
 protected:
  void write(const std::string& name, const std::string& text) {
    std::filesystem::create_directories((directory_.path() / name).parent_path());
    directory_.write(name, text);
  }

  std::optional<SystemMemory> memory(const std::string& membership) {
    write("membership", membership);
    return cgroup_memory(directory_.path() / "cgroup", directory_.path() / "membership");
  }

 private:
  test::TempDir directory_;
};

void expect_memory(const std::optional<SystemMemory>& memory, uint64_t total, uint64_t available) {
  ASSERT_TRUE(memory);
  EXPECT_EQ(memory->total, total);
  EXPECT_EQ(memory->available, available);
}

TEST_F(Cgroup, NoLimitIsNone) {
  EXPECT_FALSE(memory("0::/\n"));
  write("cgroup/memory.max", "max\n");
  EXPECT_FALSE(memory("0::/\n"));
  EXPECT_FALSE(memory(""));
  EXPECT_FALSE(memory("garbage\n:\n::\n"));
}

TEST_F(Cgroup, WhatCanBeDroppedIsLeft) {
  write("cgroup/memory.max", "1000\n");
  write("cgroup/memory.current", "700\n");
  expect_memory(memory("0::/\n"), 1000, 300);
  write("cgroup/memory.stat",
        "anon 500\nfile 130\ninactive_file 80\nactive_file 50\nslab 90\n"
        "slab_reclaimable 20\n");
  expect_memory(memory("0::/\n"), 1000, 450);
  write("cgroup/memory.stat", "inactive_file 90000\n");
  expect_memory(memory("0::/\n"), 1000, 1000);
  write("cgroup/memory.stat", "");
  write("cgroup/memory.current", "1200\n");
  expect_memory(memory("0::/\n"), 1000, 0);
}

TEST_F(Cgroup, TheLeastOfTheGroupsAroundCounts) {
  write("cgroup/user.slice/memory.max", "5000\n");
  write("cgroup/user.slice/memory.current", "4900\n");
  write("cgroup/user.slice/app.service/memory.max", "2000\n");
  write("cgroup/user.slice/app.service/memory.current", "100\n");
  write("cgroup/other/memory.max", "10\n");
  expect_memory(memory("0::/user.slice/app.service\n"), 2000, 100);
  expect_memory(memory("0::/user.slice/app.service/gone\n"), 2000, 100);
  expect_memory(memory("0::/user.slice\n"), 5000, 100);
  EXPECT_FALSE(memory("0::/\n"));
}

TEST_F(Cgroup, OutsideOfTheRootNothingIsRead) {
  write("memory.max", "10\n");
  write("cgroup/memory.max", "1000\n");
  expect_memory(memory("0::/../..\n"), 1000, 1000);
  expect_memory(memory("0::/..\n"), 1000, 1000);
}

TEST_F(Cgroup, VersionOneHasAHierarchyForMemory) {
  write("cgroup/memory/docker/memory.limit_in_bytes", "3000\n");
  write("cgroup/memory/docker/memory.usage_in_bytes", "1500\n");
  write("cgroup/memory/docker/memory.stat",
        "inactive_file 7\ntotal_inactive_file 100\ntotal_active_file 200\n");
  write("cgroup/docker/memory.max", "10\n");
  expect_memory(memory("9:cpu,cpuacct:/docker\n8:memory:/docker\n1:name=systemd:/docker\n"), 3000,
                1800);
  EXPECT_FALSE(memory("9:cpu,cpuacct:/docker\n"));
  // A container without a namespace sees its group as the root.
  write("cgroup/memory/memory.limit_in_bytes", "2500\n");
  expect_memory(memory("8:memory:/docker/0123\n"), 2500, 1800);
}

}  // namespace
}  // namespace vllm_metal
