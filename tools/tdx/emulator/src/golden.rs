// SPDX-License-Identifier: GPL-2.0

//! Holds the module against recorded behaviour of a real one.
