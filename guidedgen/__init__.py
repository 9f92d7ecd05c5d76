"""guidedgen: inference-time guidance of diffusion models, one experiment runner for many methods.

Packages, and which others each may import (checked by tests/test_layers.py):

    basics       errors, tasks and samples, images, noise, cost, precision, attention
    process      noise schedules, grids, formulas, step rules, chains               <- basics
    gradients    how to differentiate a whole chain                                 <- basics, process
    methods      one paper, one file; `problem` is what a method is given           <- basics, process, gradients
    lab          the bundled world and its trained weights                          <- basics
    zoo          reward and metric networks, and where weights are found            <- basics, lab
    models       Stable Diffusion 1 to 3.5 in diffusers' folders, what is learned   <- basics, process, zoo
    datasets     one data set, one file: a sequence of tasks                        <- basics, lab
    rewards      one scorer, one file                                               <- basics, zoo
    metrics      features -> statistics -> distance; per-image scores               <- basics, zoo, rewards
    runs         one run: config -> checked job -> samples, scores, folder          <- all of these
    studies      many runs: sweeps, their state, tables, the page                   <- all of these
    cli          the command line, its help, what the terminal shows                <- all of these

A protocol is defined in the `__init__` of the package whose classes implement it. Importing guidedgen does not import torch,
diffusers or transformers.
"""
