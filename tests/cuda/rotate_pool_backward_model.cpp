// What csrc/sm90/rotate_pool_backward_kernel.cuh is made of that holds nothing of CUDA
// (grad_u_schedule.h) against plain loops. Prints "clean", or what is wrong and exits 1. The kernel
// as a whole: emulator/.
#include <cmath>
#include <cstdio>
#include <vector>

#include "grad_u_cost.h"
#include "model.h"

namespace infodisent {
namespace backward {
namespace {

using namespace model;

// --- the left operand ---

// Row and column of element i of the 8 (two a register) that a lane passes to wgmma for A [16 rows
// of its warp, 16]: PTX, "Register Fragments for wgmma.mma_async.m64nNk16".
int fragment_row(int lane, int i) { return lane / 4 + ((i / 2) % 2 == 0 ? 0 : 8); }
int fragment_column(int lane, int i) { return lane % 4 * 2 + i % 2 + (i < 4 ? 0 : 8); }

// Gradients are small integers here: 16 bits that are the number itself.
struct Choice {
  int g_pos, g_neg, pos, neg;
};
Choice random_choice(int pixels) {
  const auto pixel = [&] { return static_cast<int>(below(pixels + 1)) - 1; };
  Choice c = {static_cast<int>(1 + below(9)), static_cast<int>(1 + below(9)), pixel(), pixel()};
  if (below(8) == 0) c.neg = c.pos;
  if (below(8) == 0) c.pos = pixels - 1;
  return c;
}
int wanted_of(const Choice& c, int pixel) {
  return (c.pos == pixel ? c.g_pos : 0) + (c.neg == pixel ? c.g_neg : 0);
}
// As the kernel makes it from what it has loaded, of an image that begins at this row.
Winners kernel_winners(const Choice& c, int first, int lane) {
  float g_pos = static_cast<float>(c.g_pos);
  int32_t neg = c.neg;
  merge(g_pos, static_cast<float>(c.g_neg), c.pos, neg);
  return winners_of(static_cast<uint32_t>(g_pos), static_cast<uint32_t>(c.g_neg), c.pos, neg, first,
                    lane);
}
// All registers of a lane for 16 rows from `row` on: `wanted(fragment row, row)` is what they hold.
template <typename F, typename W>
void check_fragments(int row, F fragment_of, W wanted) {
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const uint32_t both = fragment_of(lane, i % 2, row + pixel_of(i));
      check(row_of(i) == 8 * (i % 2), "a row of the fragment");
      for (int e = 0; e < 2; ++e)
        check(static_cast<int>(both >> (16 * e) & 0xffff) ==
                  wanted(fragment_row(lane, 2 * i + e), row + fragment_column(lane, 2 * i + e)),
              "a lane holds another gradient");
    }
}

void left_operand() {
  for (int pixels : {1, 2, 7, 16, 49, 144, 196, 197, 577, kMostPixels - 1})
    for (int repeat = 0; repeat < 50; ++repeat) {
      Choice choice[16];
      for (Choice& c : choice) c = random_choice(pixels);
      // whole images, or the ends of one that is too large for that
      const int begin = pixels > 1000 ? pixels / 16 * 16 - 64 : 0;
      for (int row = begin; row < pixels + 64; row += 16)
        check_fragments(
            row,
            [&](int lane, int h, int at) {
              return fragment(kernel_winners(choice[lane / 4 + 8 * h], 0, lane), at);
            },
            [&](int r, int pixel) { return wanted_of(choice[r], pixel); });
    }
}

// Pieces across the borders of images, as the kernel makes one after the other: winners of the
// image that a piece begins in, and of the next.
void left_operand_through() {
  for (int kind = 0; kind < kPieceKinds; ++kind) {
    if (!kPieces[kind].through) continue;
    const int rows = 16 * kPieces[kind].parts;
    for (int pixels : {31, 47, 48, 49, 64, 144, 197})
      for (int gap : {0, 1, 5}) {
        const int pitch = pixels + gap, images = 7;
        if (rows > pitch + 1) continue;
        std::vector<Choice> choice(16 * (images + 2), Choice{5, 6, -1, -1});  // then none
        for (int i = 0; i < 16 * images; ++i) choice[i] = random_choice(pixels);
        int image = 0, pixel = 0, made = 0;
        std::vector<Winners> here(64);  // [lane, h]
        const auto of = [&](int image, int lane, int h, int first) {
          return kernel_winners(choice[16 * image + lane / 4 + 8 * h], first, lane);
        };
        for (int i = 0; i < 64; ++i) here[i] = of(0, i / 2, i % 2, 0);
        for (; made < steps_of(images, pixels, pitch, kPieces[kind].parts); ++made) {
          for (int part = 0; part < kPieces[kind].parts; ++part)
            check_fragments(
                16 * part,
                [&](int lane, int h, int at) {
                  return fragment(here[2 * lane + h], at) |
                         fragment(of(image + 1, lane, h, pitch - pixel), at);
                },
                [&](int r, int at) {
                  const int row = made * rows + at;
                  if (row / pitch >= images) return 0;
                  return wanted_of(choice[16 * (row / pitch) + r], row % pitch);
                });
          for (int i = 0; i < 64; ++i) {
            if (pixel + rows >= pitch) here[i] = of(image + 1, i / 2, i % 2, pitch - pixel);
            move_on(here[i], rows);
          }
          pixel += rows;
          if (pixel >= pitch) {
            pixel -= pitch;
            ++image;
          }
          check(pixel < pitch, "a piece of three images");
        }
        check(made * rows >= (images - 1) * pitch + pixels, "pieces end before the last image");
      }
  }
}

void scales() {
  for (int exponent = -149; exponent < 128; ++exponent)
    for (float mantissa : {1.0f, 1.5f, 1.9999999f}) {
      const float most = std::ldexp(mantissa, exponent), scale = scale_of(most);
      check(std::isnormal(scale) && std::isnormal(1.0f / scale), "a scale is no normal number");
      check(std::ldexp(1.0f, std::ilogb(scale)) == scale, "a scale is no power of two");
      const float scaled = most * scale;
      check(scaled < 16384.0f && (exponent < -112 || scaled >= 8192.0f), "scaled to elsewhere");
    }
  check(scale_of(0.0f) > 0.0f && std::isnormal(1.0f / scale_of(0.0f)), "the scale of nothing");
}

// --- the right operand ---

// Address of element (k, n) of an N-major operand with the 128-byte swizzle, from the fields of its
// descriptor: the canonical layout ((8, 8, n), (8, k)) : ((1, 8, LBO), (64, SBO)) in elements.
uint32_t address_of(uint64_t descriptor, int k, int n) {
  const uint32_t start = (descriptor & 0x3fff) << 4;
  const uint32_t leading = (descriptor >> 16 & 0x3fff) << 4;
  const uint32_t stride = (descriptor >> 32 & 0x3fff) << 4;
  check(descriptor >> 62 == 1 && (descriptor >> 49 & 7) == 0, "fields of a descriptor");
  return swizzled(start + n % 64 * 2 + n / 64 * leading + k % 8 * 128 + k / 8 * stride);
}

// A box as the copy engine writes it: rows of 128 bytes, swizzled.
template <typename F>
void copy_box(std::vector<int>& memory, uint32_t to, int rows, F value) {
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < kBoxColumns; ++column)
      memory[swizzled(to + row * 128 + column * 2) / 2] = value(row, column);
}

void right_operand() {
  for (const Piece& kind : kPieces) {
    const int piece = kind.parts;
    const int stages = stages_of(piece);
    check(stages >= 3 && shared_bytes(piece, stages) <= kSharedLimit, "shared memory");
    check(stages == 8 || shared_bytes(piece, stages + 1) > kSharedLimit, "room for one more slot");
    check(slot_bytes(piece) % 1024 == 0 && box_bytes(piece) % 1024 == 0, "where boxes begin");
    check(16 * piece <= 256, "rows of a box");
    for (int stage : {0, stages - 1}) {
      const uint32_t base = 3 * 1024 + stage * slot_bytes(piece);
      std::vector<int> memory((base + slot_bytes(piece)) / 2, -1);
      for (int box : {2, 3, 0, 1})
        copy_box(memory, base + box * box_bytes(piece), 16 * piece,
                 [&](int row, int column) { return row << 10 | (box * kBoxColumns + column); });
      for (int step = 0; step < piece; ++step)
        for (int k = 0; k < 16; ++k)
          for (int n = 0; n < kTileColumns; ++n)
            check(
                memory[address_of(descriptor_of(base, piece) + descriptor_step(step), k, n) / 2] ==
                    ((16 * step + k) << 10 | n),
                "a product reads another element");
    }
  }
}

// --- the schedule ---

void covered_once(int images, int pixels, int channels, int pitch, int cluster, int splits) {
  const Grid grid = grid_of(images, channels, splits, cluster);
  const int down = channel_groups(channels, 1);
  const Cut cut = choose_cut(pixels, pitch);
  const Piece& piece = kPieces[cut.kind];
  check(grid.splits <= splits && grid.splits >= 1, "more parts than asked for");
  const int rows = steps_of(images, pixels, cut.pitch, piece.parts) * 16 * piece.parts;
  check(rows >= (images - 1) * cut.pitch + pixels, "pieces of an image");
  check(piece.through ? cut.pitch == pitch && 16 * piece.parts <= pitch + 1
                      : cut.pitch >= pixels && cut.pitch % (16 * piece.parts) == 0,
        "rows from image to image");
  check(down * kTileChannels >= channels && grid.across * kTileColumns >= channels, "all of dU");
  // [tile of channels, tile of columns, image]: each unit does all pieces of its images
  std::vector<int> seen(static_cast<size_t>(down) * grid.across * images, 0);
  std::vector<int> written(static_cast<size_t>(down) * grid.across * grid.splits, 0);
  for (int number = 0; number < grid.units; ++number)
    for (int rank = 0; rank < cluster; ++rank) {
      const Unit unit = unit_of(grid, number, images, cluster, rank);
      const Unit first = unit_of(grid, number, images, cluster, 0);
      check(unit.n == first.n && unit.first == first.first && unit.last == first.last &&
                unit.m == first.m + rank,
            "a pair must share its columns and images");
      check(unit.first < unit.last && unit.last <= images, "a part without images");
      check(unit.n < grid.across && unit.split < grid.splits, "a tile beyond dU");
      if (unit.m >= down) continue;
      const size_t tile = static_cast<size_t>(unit.m) * grid.across + unit.n;
      ++written[tile * grid.splits + unit.split];
      for (int image = unit.first; image < unit.last; ++image) ++seen[tile * images + image];
    }
  for (int count : seen) check(count == 1, "an image is added more or less than once");
  for (int count : written) check(count == 1, "a part of a tile is written more or less than once");
}

void schedule() {
  for (int channels : {64, 72, 128, 192, 512, 768, 1024, 1536, 2048})
    for (int images = 1; images <= 70; ++images)
      for (int pixels : {1, 7, 49, 144, 196, 197, 577}) {
        for (int processors : {1, 2, 7, 132}) {
          const auto [cluster, splits] = choose(images, pixels, channels, pixels, processors);
          check(splits >= 1 && splits <= images && splits <= kMostSplits, "a number of parts");
          check(cluster == 1 || (cluster == 2 && processors > 1), "a pair without processors");
          check(grid_of(images, channels, splits, cluster).splits == splits, "an empty part");
          covered_once(images, pixels, channels, pixels, cluster, splits);
        }
        if (pixels == 49)
          for (int cluster : {1, 2})
            for (int pitch : {0, pixels + 1})
              covered_once(images, pixels, channels, pitch, cluster, 1 + below(images));
      }
  // few empty rows: none where images follow each other
  for (int pixels : {49, 144, 196, 197, 577}) {
    check(choose_cut(pixels, pixels).pitch == pixels, "empty rows between images");
    const Cut cut = choose_cut(pixels, 0);
    check(cut.pitch / 16 <= (pixels + 15) / 16 + 3, "many empty rows");
    // of a batch that goes on across its images, at most the end of the last piece
    const Cut whole = choose_cut(pixels, pixels);
    const int piece = kPieces[whole.kind].parts;
    check(16 * piece * steps_of(64, pixels, whole.pitch, piece) <= 64 * pixels + 16 * piece - 1,
          "products of nothing");
  }
  check(!kPieces[choose_cut(7, 7).kind].through, "pieces of more than two images");
}

}  // namespace
}  // namespace backward
}  // namespace infodisent

using namespace infodisent::backward;

int main() {
  left_operand();
  left_operand_through();
  scales();
  right_operand();
  schedule();
  std::printf("clean\n");
}
