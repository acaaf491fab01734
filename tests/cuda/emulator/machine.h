// The parts of the emulated machine. A cluster of blocks exists at a time; its threads are fibers,
// of which the warps run in random order, each until it has to wait. Copies and arrivals at other
// blocks are on their way for as long as chance wants; products read their operands when they are
// waited for, or sooner.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "device.h"
#include "model.h"
#include "tile_schedule.h"

namespace infodisent {
namespace emulator {

using model::below;
using model::fail;

constexpr uint32_t kOffset = 0xffffff;  // bits of a shared address below the rank
inline int rank_of(uint32_t address) { return static_cast<int>(address >> 24); }

// `pending` arrivals, and all bytes announced, complete a phase.
struct Barrier {
  int arrivals, pending;
  int64_t bytes;
  uint32_t phase;
};
struct Block {
  std::vector<uint8_t> memory;
  std::map<uint32_t, Barrier> barriers;  // by offset
  int running = 0;                       // threads that have not ended
  int free_registers = 0;
  int arrived = 0;  // at sync_block
  long syncs = 0;
};

struct Product {
  Operands of_lane[32];
  uint32_t lanes;  // that have issued it, a bit each
};
struct Group {  // of products
  std::vector<Product> products;
  int committed = 0;  // lanes
};
struct Warp {
  int block, index;
  std::deque<Group> groups;
  long first_group = 0;
  int waiting = 0;  // lanes at wait_products
  long waits = 0;
  uint64_t given[32], taken[32];  // of a shuffle
  int shuffling = 0;
  long shuffles = 0;
};
struct Fiber {
  ucontext_t start;
  jmp_buf state;
  bool started = false, done = false;
  int block, thread, lane;
  Warp* warp;
  long group = 0;      // that its next product belongs to
  size_t product = 0;  // number of that in the group
  int registers = 0;
  bool pooling = false;                  // between the end of its products and its next wait
  bool (*ready)(const void*) = nullptr;  // what it waits for
  const void* condition = nullptr;
};
// A copy into one block or an arrival at a barrier of one.
struct Flight {
  int block;
  uint32_t barrier, to;
  std::vector<uint8_t> box;  // empty: an arrival
  bool written;              // before it is counted
};

struct Machine {
  std::vector<Block> blocks;
  std::vector<Warp> warps;
  std::vector<Fiber> fibers;
  std::vector<Flight> flights;
  int arrived = 0;  // at sync_cluster
  long syncs = 0;
  uint32_t shared_start = 0;
  int first_block = 0;  // of the grid
  dim3 block_size, grid_size;
  const Thread* thread = nullptr;
};
extern Machine machine;
extern Fiber* self;          // whose turn it is
extern std::string planted;  // the fault that is; or empty
extern long copies, products_of_warps;
extern long products_beside, copies_beside;  // a pool, of another warpgroup of the block
// Whether another warpgroup of the block is pooling.
bool beside_a_pool();

inline Block& own_block() { return machine.blocks[static_cast<size_t>(self->block)]; }
void swap_to_scheduler();
// The thread goes on once `condition` is true. It is evaluated by the scheduler, with `self` set.
template <typename F>
void block_until(const F& condition) {
  if (condition()) return;
  self->ready = [](const void* f) { return (*static_cast<const F*>(f))(); };
  self->condition = &condition;
  swap_to_scheduler();
}

// What a copy reads of a tensor map, in place of the driver's 128 bytes.
struct TensorMap {
  const uint8_t* base;
  uint64_t sizes[3], strides[2];
  uint32_t box[3];
  int element_bytes;
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap), "it must fit");

// Number that 16 bits are.
float number_of(uint16_t bits, bool is_float16);

// All blocks of a grid, cluster by cluster.
void run_grid(const cudaLaunchConfig_t& config, int cluster, const Thread& thread);

// --- the fake runtime ---

struct Runtime {
  int processors = 4;
  int driver = 13000;                    // version
  cudaError_t last_error = cudaSuccess;  // what somebody else has left
  CUcontext context = nullptr;           // of this thread
  bool can_launch = true;
};
extern Runtime runtime;

}  // namespace emulator
}  // namespace infodisent
