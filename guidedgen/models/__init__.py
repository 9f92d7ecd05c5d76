"""What is sampled from: latent diffusion models in folders of diffusers, and an analytic Gaussian mixture whose score is exact.

latent                       what all families share: batches, guidance, encoding and decoding
folder                       a folder's configs, checked before its weights
stable_diffusion, ..._xl, ..._3, flux, pixart, sana   those of text, each with its folder; families tells which one a folder is of
dit, pixel                   those without text: of classes, and of pixels without any condition; textless is what they share
unet                         what those with a UNet share, Stable Diffusion and XL; noise_folder what those share that are no flows
prompts, offload, quantization   less memory: text encoders that are dropped, networks that take turns, weights of fewer bits
learnable                    what a family takes of what was learned elsewhere: LoRA, words, whole networks
learned, lora, words         reads that; tuning is what is learned here, for Stable Diffusion 1 and 2
"""
