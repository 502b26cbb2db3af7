/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM tdx_emulator

#if !defined(_X86_VIRT_TDX_EMULATOR_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _X86_VIRT_TDX_EMULATOR_TRACE_H

#include <linux/tracepoint.h>

#include "tdx_emulator.h"

/* A SEAMCALL that the emulated TDX module has answered. */
TRACE_EVENT(seamcall,
	TP_PROTO(const struct tdx_emulator_call *call),
	TP_ARGS(call),

	TP_STRUCT__entry(
		__field(u16, leaf)
		__field(u8, version)
		__field(u32, lp)
		__field(u64, rcx)
		__field(u64, rdx)
		__field(u64, r8)
		__field(u64, r9)
		__field(u64, rax)
		__field(u64, out_rcx)
		__field(u64, out_rdx)
		__field(u64, out_r8)
		__field(u64, ticks)
		__string_len(name, call->name, call->name_len)
		__string_len(locks, call->locks, call->locks_len)
	),

	TP_fast_assign(
		__entry->leaf = call->rax;
		__entry->version = call->rax >> 16;
		__entry->lp = call->lp;
		__entry->rcx = call->rcx;
		__entry->rdx = call->rdx;
		__entry->r8 = call->r8;
		__entry->r9 = call->r9;
		__entry->rax = call->status;
		__entry->out_rcx = call->out_rcx;
		__entry->out_rdx = call->out_rdx;
		__entry->out_r8 = call->out_r8;
		__entry->ticks = call->ticks;
		__assign_str(name);
		__assign_str(locks);
	),

	TP_printk("leaf=%u version=%u name=%s rcx=0x%llx rdx=0x%llx r8=0x%llx r9=0x%llx rax=0x%llx lp=%u locks=%s ticks=%llu out_rcx=0x%llx out_rdx=0x%llx out_r8=0x%llx",
		  __entry->leaf, __entry->version, __get_str(name),
		  __entry->rcx, __entry->rdx, __entry->r8, __entry->r9,
		  __entry->rax, __entry->lp, __get_str(locks), __entry->ticks,
		  __entry->out_rcx, __entry->out_rdx, __entry->out_r8)
);

#endif /* _X86_VIRT_TDX_EMULATOR_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE emulator_trace

/* This part must be outside protection */
#include <trace/define_trace.h>
