"""What jaxnorm costs beside other libraries: `python -m benchmarks speed | step | compiled | accuracy | memory`.

The modules: `cases` (the table of norms and arrays that all commands read), `libraries` and `torch_norms` (the same
norm in each library), one for each command, `networks`, `timing`, `hlo` (what a compiled program moves), `targets`
(accelerators to compile for), and `tables` and `report`, which print and save.
"""
