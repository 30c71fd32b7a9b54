// SPDX-License-Identifier: Apache-2.0
using namespace vllm_metal::gpu;

// Cache row of token `position` of the request whose row of block_tables is `table`.
FUNC int cache_row(DEVICE_POINTER(const int) table, int block_size, int position) {
  if (block_size == 0) return table[0] + position;
  const uint size = uint(block_size), token = uint(position);  // unsigned division is shorter
  return table[token / size] * block_size + int(token % size);
}
