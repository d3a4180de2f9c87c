"""Options in UniTok's file that change no numbers: where it is trained, on what, how long, and with which losses."""

UNITOK_TRAINING = (
    *("exp_name", "output_dir", "resume_from", "lpips_path", "dino_path", "fid_eval_src", "fid_eval_dst", "vis_img_dir"),
    *("fid_feature_extractor", "clip_pretrain_path", "fp16", "bf16", "tf32", "compile_model", "ddp_static", "grad_ckpt"),
    *("grad_accu", "device", "train_data", "val_data", "dataset_type", "imagenet_val", "imagenet_v2", "subset_ratio"),
    *("resize_ratio", "hflip", "workers", "train_num_samples", "train_data_upsampling_factors", "dataset_resampled", "use_aug"),
    *("drop_path", "use_clip_pretrain", "local_loss", "gather_with_grad", "pretrained_clip", "pretrained_clip_text", "lock_text"),
    *("lock_text_unlocked_layers", "lock_text_freeze_layer_norm", "force_custom_text", "force_custom_vision"),
    *("zeroshot_eval_freq", "dino_depth", "dino_kernel_size", "disc_norm", "disc_aug_prob", "disc_specnorm", "step_disc_every"),
    *("vae_init", "vocab_init", "disc_init", "epoch", "local_bs", "vae_local_bs", "global_bs", "lr", "wd", "disc_lr", "disc_wd"),
    *("grad_clip", "ema", "warmup_iter", "warmup_ep", "disc_start_ep", "disc_warmup_ep", "schedule", "lr_start_ratio"),
    *("lr_end_ratio", "disc_lr_end_ratio", "custom_lr_multiplier", "optimizer", "optim_eps", "fuse_opt", "optim_beta"),
    *("disc_optim_beta", "l1", "l2", "lp", "lpr", "ld", "lq", "lc", "gada", "bcr", "bcr_cut", "dcrit", "report_wandb"),
    *("wandb_notes", "run_id", "eval_per_epoch", "dbg_unused_param", "dbg_nan", "seed", "deterministic", "same_seed_for_all_ranks"),
)
