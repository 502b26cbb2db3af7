// SPDX-License-Identifier: GPL-2.0

//! What a guest asks of the module by TDCALL.
//!
//! Of the many that there are, the two that matter to the host: TDG.VP.VMCALL, by which the guest
//! asks the host for something, and TDG.MEM.PAGE.ACCEPT, by which it accepts a page that the host
//! has added. All others are answered as unknown leaves are.

use super::{
    address::{
        level_size,
        PAGE_SIZE, //
    },
    locks::Way,
    open::OpenVp,
    platform::Platform,
    regs::Regs,
    sept::{
        self,
        GpaOperand,
        SeptEntry,
        SeptState,
        Walk, //
    },
    status::{
        Operand,
        Status, //
    },
    td::TdcsField,
    vp::VpField, //
};

const VP_VMCALL: u16 = 0;
const MEM_PAGE_ACCEPT: u16 = 6;

/// The length of the instruction.
const TDCALL_LENGTH: u64 = 4;

/// Bits of the mask in RCX for registers that cannot be passed to the host: RAX, RCX, RSP.
const MASK_RESERVED: u64 = !0xffff_ffff | (1 << 0) | (1 << 1) | (1 << 4);
/// The bit of the mask for RBP.
const MASK_RBP: u64 = 1 << 5;
/// The bits of the mask for general-purpose registers.
const MASK_GPRS: u64 = 0xffff;

/// An accept that failed: what the extended exit qualification begins with.
const ACCEPT_FAILED: u64 = 1;

/// What becomes of a TDCALL.
pub(super) enum Tdcall {
    /// The guest goes on.
    Return,
    /// The host is to do what the guest asks for in its registers.
    Vmcall,
    /// The page cannot be accepted as it is. The host is told as if the guest had written to it,
    /// with this extended exit qualification; the guest will try again.
    NotAccepted {
        /// The GPA.
        gpa: u64,
        /// The extended exit qualification.
        extended_qualification: u64,
    },
    /// The guest has not got an entry for too long, because the host wants it.
    HostPriorityTimeout,
}

/// Serves the TDCALL that a guest made with the registers in its TDVPR.
pub(super) fn tdcall<P: Platform>(vp: &OpenVp<'_, P>) -> Tdcall {
    let regs = vp.guest_regs();
    let result = match regs.rax as u16 {
        _ if regs.rax >> 16 != 0 => Err(Status::OPERAND_INVALID.on(Operand::Rax)),
        VP_VMCALL => check_vmcall(vp, regs.rcx).map(|()| Tdcall::Vmcall),
        MEM_PAGE_ACCEPT => vp.td.call().scoped(|| accept(vp, regs.rcx)),
        _ => Err(Status::OPERAND_INVALID.on(Operand::Rax)),
    };
    if let Ok(not_done @ Tdcall::NotAccepted { .. }) = result {
        return not_done;
    }
    vp.set(
        VpField::GuestRip,
        vp.get(VpField::GuestRip).wrapping_add(TDCALL_LENGTH),
    );
    let (rax, end) = match result {
        Ok(end @ Tdcall::HostPriorityTimeout) => (busy().raw(), end),
        Ok(end) => (0, end),
        Err(status) => (status.raw(), Tdcall::Return),
    };
    vp.set_guest_regs(&Regs { rax, ..regs });
    end
}

fn check_vmcall<P: Platform>(vp: &OpenVp<'_, P>, mask: u64) -> Result<(), Status> {
    if mask & MASK_RESERVED != 0 || mask & MASK_RBP != 0 && vp.td.has_no_rbp_mod() {
        return Err(Status::OPERAND_INVALID.on(Operand::Rcx));
    }
    Ok(())
}

/// Shows the host the registers that the guest selected, with 0 for all others. RBP stays the
/// host's if the TD asked for that.
pub(super) fn show_vmcall<P: Platform>(vp: &OpenVp<'_, P>, host: &mut Regs) {
    let guest = vp.guest_regs();
    let shown = Regs::default().with(guest.rcx & MASK_GPRS, &guest);
    let rbp = if vp.td.has_no_rbp_mod() {
        host.rbp
    } else {
        shown.rbp
    };
    *host = Regs {
        rax: host.rax,
        rcx: guest.rcx,
        rbp,
        ..shown
    };
}

/// Gives the guest the host's answer to its TDG.VP.VMCALL: the registers that it selected.
pub(super) fn answer_vmcall<P: Platform>(vp: &OpenVp<'_, P>, host: &Regs) {
    let guest = vp.guest_regs();
    vp.set_guest_regs(&guest.with(guest.rcx & MASK_GPRS, host));
}

/// Accepts the page of the GPA and level in `rcx`.
fn accept<P: Platform>(vp: &OpenVp<'_, P>, rcx: u64) -> Result<Tdcall, Status> {
    let tdcs = &*vp.td;
    let call = tdcs.call();
    let operand = GpaOperand::decode(rcx, 0..=1)?;
    sept::check_private(tdcs, operand.gpa)?;
    // The tree stays: the host cannot take a table away before the guest's TLBs are tracked.
    let (mut found, complete) = sept::walk(tdcs, operand.gpa, operand.level);
    let not_accepted = |found: &Walk<'_, P>| {
        Ok(Tdcall::NotAccepted {
            gpa: operand.gpa,
            extended_qualification: ACCEPT_FAILED | (found.about_accept(operand.level) << 32),
        })
    };
    if !complete {
        return match found.entry.state() {
            SeptState::Mapped => Err(Status::PAGE_ALREADY_ACCEPTED),
            _ => not_accepted(&found),
        };
    }
    let way = Way::SEPT_ENTRY_FOR_GUEST;
    if found.lock(call, operand.gpa, way).is_err() {
        return wait_for_host(vp);
    }
    vp.set(VpField::HostPrioritySince, 0);
    // It may have changed before it was locked.
    found.reload();
    match found.entry.state() {
        SeptState::Pending => {}
        SeptState::Mapped => return Err(Status::PAGE_ALREADY_ACCEPTED),
        SeptState::Table => return Err(Status::PAGE_SIZE_MISMATCH.on(Operand::Rcx)),
        _ => return not_accepted(&found),
    }

    let page = found.entry.address();
    let mut done = 0;
    while done < level_size(operand.level) {
        call.platform.fill(page.wrapping_add(done), PAGE_SIZE, 0);
        done = done.wrapping_add(PAGE_SIZE);
    }
    found.set_locked(SeptEntry::mapped(page));
    Ok(Tdcall::Return)
}

/// Lets the guest try again, unless it has already for too long.
fn wait_for_host<P: Platform>(vp: &OpenVp<'_, P>) -> Result<Tdcall, Status> {
    const HZ_PER_MHZ: u64 = 1_000_000;
    let platform = vp.td.call().platform;
    let now = platform.tsc();
    let since = vp.get(VpField::HostPrioritySince);
    if since == 0 {
        vp.set(VpField::HostPrioritySince, now.max(1));
        return Err(busy());
    }
    let mhz = platform.tsc_hz() / HZ_PER_MHZ;
    let timeout = vp.td.get(TdcsField::HpLockTimeout).saturating_mul(mhz);
    if now.saturating_sub(since) <= timeout {
        return Err(busy());
    }
    vp.set(VpField::HostPrioritySince, 0);
    Ok(Tdcall::HostPriorityTimeout)
}

/// What a guest is told when it does not get an entry.
const fn busy() -> Status {
    Status::OPERAND_BUSY.on(Operand::Rcx)
}
