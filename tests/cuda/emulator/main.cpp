// The kernels of csrc/sm90 on a CPU: their own sources, and those of their host functions, on
// random problems. Prints "clean", or what is wrong and exits 1.
//
//   emulator COUNT [SEED] [FAULT]    so many problems; with this fault, which must be found
//   emulator -COUNT [SEED] [FAULT]   so many of rotate_pool alone
#include <cstdlib>

#include "problems.h"

using namespace infodisent::emulator;

int main(int count, char** arguments) {
  const int asked = count > 1 ? std::atoi(arguments[1]) : 100, problems = std::abs(asked);
  infodisent::model::generator.seed(count > 2 ? std::strtoul(arguments[2], nullptr, 10) : 1);
  if (count > 3) planted = arguments[3];
  infodisent::model::context = problem;
  host();
  for (int i = 0; i < problems; ++i) {
    const uint32_t kind = asked < 0 ? 0 : below(21);
    if (kind < 12)
      forward();
    else if (kind < 18)
      backward();
    else if (kind < 19)
      cast();
    else if (kind < 20)
      lay_out();
    else
      split();
    if (i % 50 == 49)
      std::fprintf(stderr, "%d problems, %ld copies, %ld products of a warp\n", i + 1, copies,
                   products_of_warps);
  }
  std::fprintf(stderr, "%ld copies, %ld products beside a pool\n", copies_beside, products_beside);
  std::printf("clean\n");
}
