"""FP16 and INT8 as transforms of a graph, and the arithmetic that judges them, the same on every processor.

`variants` makes the graph files of each precision with their thresholds; `layer_search`, `gptq` and `activation_ranges`
serve INT8, `simulate_fp16` and `simulate_int8` execute. It imports `graph`, `ops` and the runtime.
"""
