"""ACDiT: blocks of an image or clip, denoised one after the other."""
