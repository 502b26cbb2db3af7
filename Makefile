# SPDX-License-Identifier: GPL-2.0

kernel:
	@scripts/kernel machine machine overlay

.PHONY: kernel
