"""Whether training on this machine's GPUs is right, and how fast it is: ``python -m bench.gpu_check``.

`__main__` runs the sections one after another, each in a process of its own · `numbers` what a section reports ·
`fits` whole small fits against the CPU, resumed, under torchrun · `parts` kernels, losses and sharding by themselves ·
`cells` the speed of models of real sizes.

It loads neither Ray nor vLLM, and no model's weights: a GPU machine needs torch, transformers, peft and pydantic alone.
"""
