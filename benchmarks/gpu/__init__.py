"""Parts of `benchmarks.gpu_report` and `benchmarks.gpu_cuda`: the machine, stages, tables, bars."""
