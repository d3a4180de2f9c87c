"""OmniGen: one decoder that reads text and images and denoises the image it makes."""
