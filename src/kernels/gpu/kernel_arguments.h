// SPDX-License-Identifier: Apache-2.0
// What the host and the GPU kernels of paged attention agree on. The kernels' text is, in this
// order: the prelude of the target (prelude_metal.h or prelude_cuda.h), then the files that
// sources.txt lists, this one first, with their #include and #pragma lines left out; then, for
// Metal, one INSTANTIATE_KERNEL("name", function, template arguments...) a kernel. CUDA takes
// the name expression function<template arguments...>. Types are float, half and bfloat.
//
// function<arguments>                        threads a group   groups (x, y)
// kv_write<T>                                kWriteThreads     num_tokens, 1
// rotary_kv_write<T>                         kWriteThreads     num_tokens, ceil((num_heads +
//                                                              2 * num_kv_heads) / kRotaryHeads)
// copy_blocks<Word>                          kCopyThreads      ceil(words_per_block /
//                                                              kCopyWordsPerGroup), num_pairs
// add_rms_norm<T>                            kNormThreads      num_rows, 1
// attention_prefill<T, head_dim, matrix>     kPrefillThreads   num_kv_heads, num_tiles
// attention_decode<T, head_dim, heads>       kDecodeThreads    num_kv_heads * ceil(group_size /
//                                                              heads), num_works
// attention_merge<T, head_dim>               kMergeThreads     num_heads, num_works
//
// matrix: true on Metal (simdgroup_matrix), false on CUDA. heads: query heads of one key head that
// a group takes, one of 1, 2, 4, 8, at most kDecodeMaxValues / head_dim. Word: uint4 where the
// bytes of a block and both addresses are multiples of 16, else ushort. group_size is
// num_heads / num_kv_heads; head_dim one of 64, 80, 96, 128, 192, 256.
//
// Buffers by index; strides count elements, and the elements of one head lie together but for
// kv_write, whose inputs may have any strides:
//
// kv_write           0 keys  1 values  [num_tokens, num_kv_heads, head_dim]
//                    2 slot_mapping  int32 [num_tokens]; a negative slot is not written
//                    3 key cache  4 value cache  [num_rows, num_kv_heads, head_dim]
//                    5 KVWriteArguments
// rotary_kv_write    0 qkv [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], contiguous
//                    1 cos_sin float [num_tokens, rotary_dim], contiguous
//                    2 slot_mapping  3 key cache  4 value cache  as for kv_write
//                    5 queries [num_tokens, num_heads, head_dim], contiguous
//                    6 RotaryKVWriteArguments
// copy_blocks        0 key cache  1 value cache  [num_blocks, words_per_block]
//                    2 BlockPair [num_pairs]; no target is a source or the target of another pair
//                    3 CopyBlocksArguments
// add_rms_norm       0 x  1 residual  [num_rows, size]  2 weight [size]; all contiguous
//                    3 x + residual  4 normalized  [num_rows, size]
//                    5 AddRmsNormArguments
// attention_prefill  0 queries [num_tokens, num_heads, head_dim]
//                    1 key cache  2 value cache  [num_rows, num_kv_heads, head_dim]
//                    3 block_tables int32 [num_requests, blocks_per_request]
//                    4 query_starts int32 [num_requests + 1]
//                    5 context_lens int32 [num_requests]
//                    6 sinks float [num_heads]; any buffer where has_sinks is 0
//                    7 PrefillTile [num_tiles]
//                    8 outputs [num_tokens, num_heads, head_dim], contiguous
//                    9 AttentionArguments
// attention_decode   0 to 6 and 8, 9 as for attention_prefill
//                    7 DecodeWork [num_works]
//                    10 partial_outputs float [num_partials, num_heads, head_dim]
//                    11 partial_sums float [num_partials, num_heads, 2]: maximum, sum
//                    (10 and 11: any buffer where no work has a partial)
// attention_merge    0 partial_outputs  1 partial_sums  2 sinks  3 MergeWork [num_works]
//                    4 outputs  5 AttentionArguments
#pragma once

#include <cstdint>

namespace vllm_metal {
namespace gpu {

enum : int32_t {
  kSimdWidth = 32,  // lanes of a simdgroup (a warp)
  kWriteThreads = 256,
  kRotaryHeads = 8,  // query, key or value heads of a group
  kCopyThreads = 256,
  kCopyWordsPerGroup = 1024,
  kNormThreads = 512,
  kNormValues = 4,  // neighbours that a thread takes at a time
  kPrefillThreads = 128,
  kPrefillRows = 32,  // rows of a tile, 8 a simdgroup
  kDecodeThreads = 128,
  kDecodeMaxValues = 1024,  // heads * head_dim of one group: what its registers hold
  kMergeThreads = 64,
};

struct KVWriteArguments {
  int64_t key_strides[3];    // of keys: token, head, element
  int64_t value_strides[3];  // of values: token, head, element
  int64_t cache_row_stride;  // between rows of the caches: num_kv_heads * head_dim
  int32_t num_kv_heads;
  int32_t head_dim;
};

struct RotaryKVWriteArguments {
  int64_t cache_row_stride;  // between rows of the caches: num_kv_heads * head_dim
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t rotary_dim;  // first elements of a head that turn, an even number
};

struct BlockPair {
  int32_t source;
  int32_t target;
};

struct CopyBlocksArguments {
  int64_t words_per_block;
};

struct AddRmsNormArguments {
  int32_t size;
  float eps;
};

struct AttentionArguments {
  int64_t query_token_stride;
  int64_t query_head_stride;
  int64_t cache_row_stride;  // between rows of the caches: num_kv_heads * head_dim
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t block_size;          // tokens a block; 0: one contiguous range a request
  int32_t blocks_per_request;  // columns of block_tables
  float scale;                 // of scores, before the soft cap
  float softcap;               // score = softcap * tanh(score / softcap); 0: none
  int32_t window;              // keys that a query sees, its own included; 0: all
  int32_t has_sinks;           // 1: exp(sink of the head) joins the sum of the softmax
};

// Rows of a request and key head are its queries times the query heads of that key head, heads
// innermost: row = query * group_size + head, query counted in the request. One group takes rows
// [first_row, first_row + num_rows) of one key head; together the tiles of a request have
// num_queries * group_size rows.
struct PrefillTile {
  int32_t request;
  int32_t first_row;
  int32_t num_rows;  // 1 to kPrefillRows
  int32_t unused;
};

// One query and those of the keys [first_key, end_key) that it sees.
struct DecodeWork {
  int32_t request;
  int32_t query;  // in the request
  int32_t first_key;
  int32_t end_key;
  int32_t partial;  // row of the partial arrays; -1: all the keys are here, write the output
};

// The partials [first_partial, first_partial + num_partials) of one query, merged in this order.
struct MergeWork {
  int32_t token;  // row of the outputs
  int32_t first_partial;
  int32_t num_partials;
};

}  // namespace gpu
}  // namespace vllm_metal
