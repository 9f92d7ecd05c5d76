"""guidedgen: inference-time guidance of diffusion models, one experiment runner for many methods.

Rooms, and who may import whom (held by tests/test_layers.py):

    types, images, noise, cost     what everything else speaks: torch, numpy, pillow
    precision                      networks in half precision, with their gradients
    process                        noise schedules, grids, formulas, step rules                <- types
    augment                        random copies of pictures                                   <- types, noise
    problem                        what a method is given                             <- types, images, noise, augment, process
    gradients                      how to differentiate a whole chain                          <- types, process
    models                         Stable Diffusion folders, the analytic Gaussian mixture     <- types, process, images, cost, zoo
    methods                        one paper, one file                                <- types, process, noise, augment, problem
    vision_language                how BLIP and BLIP-2 say what a text has to do with an image
    zoo                            reward and metric networks, and where weights are found   <- types, images, vision_language, lab
    rewards                        one scorer, one file                               <- types, images, noise, augment
    datasets                       a dataset is a sequence of Task                             <- types, images, lab
    metrics                        features -> statistics -> distance; per-image scores        <- types, images
    lab                            the bundled world and its trained weights          <- types, images, noise, vision_language
    shards                         which share of a run a process takes                        <- types
    inside                         files of a folder that nothing leads out of
    locks                          locks between processes                                     <- inside
    shapes                         what stored files hold, checked as they are read
    store                          a run's folder                                              <- types, inside, locks, shapes
    tracker                        its mirror in W&B                                           <- types, inside, store
    contents                       what files hold, by which runs are told apart               <- types
    evaluate                       from images to metrics                                      <- types, images, metrics, store
    pages                          a study as one page and as tables                           <- types, shapes, store, config
    report                         progress, tables, grids                                     <- cost, evaluate, pages
    targets                        which class or function a config may name                   <- types
    plain_yaml                     a stored config, and nothing more than that                 <- inside, shapes
    config                         config to objects, and a run's identity                     <- types, targets, plain_yaml
    hydra_settings, option_files   what of Hydra's a command may give; folders of further options        <- types
    command_line                   its arguments to configs                            <- types, config, hydra_settings
    terminal                       where its output goes, and its exit code                    <- types
    usage                          what --help shows                                           <- config
    options                        counts, names and the device, checked                       <- types, shards, targets
    jobs                           a config to a checked job                                   <- all of these
    sweeps                         the runs of a sweep, and what each is worth                 <- config, command_line, jobs
    fetching                       what commands read that is not here, and bringing it       <- config, command_line, models, zoo
    status                         what they have come to                                      <- store, sweeps
    sampling                       a job's samples, and those that fail                        <- problem, jobs, store
    learning                       what a method learns before its samples are drawn           <- models, jobs, sampling
    judging                        its metrics                                                 <- evaluate, jobs, sampling
    rejudging                      those of a stored run, by what is chosen now                 <- command_line, judging
    experiment                     from job to finished run                                    <- all of these

Importing guidedgen loads none of torch, diffusers and transformers.
"""
