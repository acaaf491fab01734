"""Side-by-side timings of the operators and their peers: shapes, cases, peers, one harness."""
