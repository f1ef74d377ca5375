// The operators as plain C functions: checks of what comes from lists, threads, and nothing else.
//
// Rows are dense (channels next to each other). Jobs are handed out one by one; how they fall to
// threads changes no bit, for no sum ever crosses a job.
#include <ATen/Parallel.h>

#include <atomic>
#include <limits>
#include <numeric>
#include <vector>

#include "block.h"

using namespace flyball;

namespace {

enum Status { kDone = 0, kTableOutOfRange = 1, kPositionsNotRising = 2, kNoMemory = 3 };

template <typename Job>
void for_each_job(int64_t jobs, const Job& job) {
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min<int64_t>(jobs, at::get_num_threads());
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (; begin < end; begin++)
      for (int64_t j = next++; j < jobs; j = next++) job(j);
  });
}

template <typename Run>
int guarded(const Run& run) {
  try {
    return run();
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
}

bool in_range(const int32_t* values, int64_t count, int64_t least, int64_t below) {
  int32_t low = std::numeric_limits<int32_t>::max(), high = std::numeric_limits<int32_t>::min();
  for (int64_t i = 0; i < count; i++) {
    low = std::min(low, values[i]);
    high = std::max(high, values[i]);
  }
  return count == 0 || (low >= least && high < below);
}

bool rising(const int32_t* values, int64_t count) {
  bool holds = true;
  for (int64_t i = 1; i < count; i++) holds &= values[i - 1] < values[i];
  return holds;
}

std::vector<float> pad_bias(const float* bias, int64_t outputs) {
  std::vector<float> longer(static_cast<size_t>(padded(outputs)), 0.0f);
  std::copy_n(bias, outputs, longer.begin());
  return longer;
}

// Shared by both products: `add` and `positions` are null where rows are written in order.
int gather_gemm(const float* x, const int32_t* table, int64_t count, const Weight& weight,
                float* out, const int32_t* positions, Clamp clamp) {
  constexpr int64_t kRows = 96;
  const std::vector<float> zeros(static_cast<size_t>(weight.inputs), 0.0f);
  for_each_job((count + kRows - 1) / kRows, [&](int64_t job) {
    static thread_local Buffer<const float*> gathered;
    const float** rows = gathered.reserve(weight.taps * kRows);
    const float* added[kRows];
    const int64_t begin = job * kRows, size = std::min(kRows, count - begin);
    for (int64_t r = 0; r < size; r++)
      for (int64_t t = 0; t < weight.taps; t++) {
        const int64_t row = table ? table[(begin + r) * weight.taps + t] : begin + r;
        rows[t * kRows + r] = row < 0 ? zeros.data() : x + row * weight.inputs;
      }
    const auto target = [&](int64_t r) {
      const int64_t row = positions ? positions[begin + r] : begin + r;
      return out + row * weight.outputs;
    };
    if (positions)
      for (int64_t r = 0; r < size; r++) added[r] = target(r);
    product(weight, rows, kRows, static_cast<int>(size), positions ? added : nullptr, clamp, false,
            [&](int row, int64_t column, int64_t) { return target(row) + column; });
  });
  return kDone;
}

// One a thread, with its memory.
Stream& own_stream() {
  static thread_local Stream stream;
  return stream;
}

Lists& own_lists() {
  static thread_local Lists lists;
  return lists;
}

// How many parts an image is cut into so that all threads have work; 1 where images suffice.
int64_t parts_of(int64_t images, int64_t threads, int64_t pixels) {
  if (threads == 1 || images >= 4 * threads) return 1;
  const int64_t parts = threads / std::gcd(images, threads);
  return std::max<int64_t>(1, std::min(parts, pixels / 64));
}

// Copies the rows of x that active pixels [begin, end) look at outside their own range.
void copy_halo(const Lists& lists, const float* x, int64_t channels, int begin, int end,
               Buffer<float>& halo) {
  const int from = lists.first[begin], until = lists.past[end - 1];
  float* to = halo.reserve((until - from) * channels);
  for (int j = from; j < until; j++, to += channels) {
    const int pixel = lists.dilated[j];
    if (pixel < lists.active[begin] || pixel > lists.active[end - 1])
      std::copy_n(x + pixel * channels, channels, to);
  }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

struct FlyballBlock {  // as flyball.kernels.cpu.blocks writes it
  const float *first, *first_bias, *middle, *middle_bias, *last, *last_bias;
  int64_t inputs, expanded, between, outputs;
  int64_t first_taps, first_stride, last_taps, window_stride;
  int32_t middle_kind;
  float inner_low, inner_high, outer_low, outer_high;
};

int flyball_interface() { return 1; }

int flyball_lanes() { return kLanes; }

int flyball_has_threads() {
#ifdef _OPENMP
  return 1;
#else
  return 0;
#endif
}

void flyball_pack(const float* weight, int64_t taps, int64_t inputs, int64_t outputs, float* out) {
  pack(weight, taps, inputs, outputs, out);
}

int flyball_gather_gemm(const float* x, int64_t x_rows, const int32_t* table, int64_t count,
                        const float* packed, int64_t taps, int64_t inputs, int64_t outputs,
                        const float* bias, float low, float high, float* out) {
  return guarded([&]() -> int {
    if (table && !in_range(table, count * taps, -1, x_rows)) return kTableOutOfRange;
    const std::vector<float> longer = pad_bias(bias, outputs);
    const Weight weight{packed, longer.data(), taps, inputs, outputs};
    return gather_gemm(x, table, count, weight, out, nullptr, {low, high});
  });
}

int flyball_gather_gemm_scatter(const float* x, int64_t x_rows, const int32_t* table, int64_t count,
                                const float* packed, int64_t taps, int64_t inputs, int64_t outputs,
                                const float* bias, float low, float high, float* out,
                                int64_t out_rows, const int32_t* positions) {
  return guarded([&]() -> int {
    if (table && !in_range(table, count * taps, -1, x_rows)) return kTableOutOfRange;
    if (!rising(positions, count) || !in_range(positions, count, 0, out_rows))
      return kPositionsNotRising;
    const std::vector<float> longer = pad_bias(bias, outputs);
    const Weight weight{packed, longer.data(), taps, inputs, outputs};
    return gather_gemm(x, table, count, weight, out, positions, {low, high});
  });
}

int flyball_depthwise(const float* x, int64_t x_rows, const int32_t* table, int64_t count,
                      const float* packed, int64_t channels, const float* bias, float low,
                      float high, float* out) {
  return guarded([&]() -> int {
    constexpr int64_t kRows = 64;
    if (!in_range(table, count * 9, -1, x_rows)) return kTableOutOfRange;
    const std::vector<float> longer = pad_bias(bias, channels);
    const std::vector<float> zeros(longer.size(), 0.0f);
    const Weight weight{packed, longer.data(), 9, 1, channels};
    for_each_job((count + kRows - 1) / kRows, [&](int64_t job) {
      const int64_t begin = job * kRows, size = std::min(kRows, count - begin);
      depthwise(weight, table + begin * 9, static_cast<int>(size), {low, high},
                out + begin * channels, channels, false,
                [&](int64_t column, int64_t, int32_t row) {
                  return row < 0 ? zeros.data() : x + row * channels + column;
                });
    });
    return kDone;
  });
}

// mask: (batch, out height, out width), not 0 where a pixel runs; null for all. With several parts
// an image and out == x, rows that a part reads and its neighbours write are copied first.
// listed: receives how many dilated and how many active pixels the images have together.
int flyball_block(const FlyballBlock* b, const float* x, const uint8_t* mask, int64_t batch,
                  int64_t height, int64_t width, const float* identity, float* out,
                  int64_t* listed) {
  return guarded([&]() -> int {
    const Block block{{b->first, b->first_bias, b->first_taps, b->inputs, b->expanded},
                      {b->middle, b->middle_bias, 9, b->expanded, b->between},
                      {b->last, b->last_bias, b->last_taps, b->between, b->outputs},
                      static_cast<Middle>(b->middle_kind),
                      static_cast<int>(b->first_stride),
                      {b->inner_low, b->inner_high},
                      {b->outer_low, b->outer_high}};
    const auto cut = [](int64_t size, int64_t stride) { return (size - 1) / stride + 1; };
    const int rows = static_cast<int>(cut(height, b->first_stride));
    const int columns = static_cast<int>(cut(width, b->first_stride));
    const int stride = static_cast<int>(b->window_stride);
    const Grid grid{rows, columns, static_cast<int>(cut(rows, stride)),
                    static_cast<int>(cut(columns, stride)), stride};
    const auto mask_of = [&](int64_t i) { return mask ? mask + i * grid.out_pixels() : nullptr; };
    const auto image_of = [&](int64_t i) {
      const int64_t skipped = i * grid.out_pixels() * b->outputs;
      return Image{x + i * height * width * b->inputs, static_cast<int>(height),
                   static_cast<int>(width), identity + skipped, out + skipped};
    };
    std::atomic<int64_t> dilated{0}, active{0};
    const auto listed_image = [&](int64_t i, bool counts) -> Lists& {
      Lists& lists = own_lists();
      lists.build(mask_of(i), grid);
      if (counts) dilated += lists.dilateds, active += lists.actives;
      return lists;
    };
    const int64_t parts = parts_of(batch, at::get_num_threads(), grid.out_pixels());
    const auto part_of = [&](const Lists& lists, int64_t part) {
      return std::pair{static_cast<int>(lists.actives * part / parts),
                       static_cast<int>(lists.actives * (part + 1) / parts)};
    };
    std::vector<Buffer<float>> halos(static_cast<size_t>(parts == 1 ? 1 : batch * parts));
    if (parts > 1 && out == x)
      for_each_job(batch * parts, [&](int64_t job) {
        const Lists& lists = listed_image(job / parts, false);
        const auto [begin, end] = part_of(lists, job % parts);
        if (begin < end)
          copy_halo(lists, image_of(job / parts).x, b->inputs, begin, end,
                    halos[static_cast<size_t>(job)]);
      });
    for_each_job(batch * parts, [&](int64_t job) {
      const int64_t part = job % parts;
      Lists& lists = listed_image(job / parts, part == 0);
      const auto [begin, end] = part_of(lists, part);
      if (begin == end && (part > 0 || lists.actives > 0)) return;
      const float* halo = parts == 1 ? nullptr : halos[static_cast<size_t>(job)].data();
      own_stream().run(block, grid, lists, image_of(job / parts), begin, end, halo);
    });
    listed[0] = dilated, listed[1] = active;
    return kDone;
  });
}

}  // extern "C"
#pragma GCC visibility pop
