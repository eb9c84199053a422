//! The process that holds a pod's namespaces open: it waits, reaps zombies, and ends when it is told to.
//!
//! Freestanding, because it must run in an image that holds nothing else: no C library, four system calls.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

const SIGINT: usize = 2;
const SIGTERM: usize = 15;
const SIGCHLD: usize = 17;
/// `SIG_BLOCK` and `WNOHANG`.
const BLOCK: usize = 0;
const NO_HANG: usize = 1;
/// The kernel's signal set is one 64-bit word on both architectures.
const SET_SIZE: usize = 8;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const SIGPROCMASK: usize = 14;
    pub const SIGTIMEDWAIT: usize = 128;
    pub const WAIT4: usize = 61;
    pub const EXIT_GROUP: usize = 231;
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub const SIGPROCMASK: usize = 135;
    pub const SIGTIMEDWAIT: usize = 137;
    pub const WAIT4: usize = 260;
    pub const EXIT_GROUP: usize = 94;
}

// The kernel enters with an aligned stack and no return address; a function expects to have been called.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "and rsp, -16", "call {}", "ud2", sym pause);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "bl {}", "brk 0", sym pause);

extern "C" fn pause() -> ! {
    let set: u64 = bit(SIGINT) | bit(SIGTERM) | bit(SIGCHLD);
    let set = &raw const set as usize;
    // Blocked signals stay pending for sigtimedwait, even those that the kernel hides from the first process of a namespace.
    system_call(number::SIGPROCMASK, [BLOCK, set, 0, SET_SIZE]);
    loop {
        match system_call(number::SIGTIMEDWAIT, [set, 0, 0, SET_SIZE]) as usize {
            SIGINT | SIGTERM => break,
            _ => while system_call(number::WAIT4, [usize::MAX, 0, NO_HANG, 0]) > 0 {},
        }
    }
    loop {
        system_call(number::EXIT_GROUP, [0; 4]);
    }
}

const fn bit(signal: usize) -> u64 {
    1 << (signal - 1)
}

#[cfg(target_arch = "x86_64")]
fn system_call(number: usize, [a, b, c, d]: [usize; 4]) -> isize {
    let result;
    // SAFETY: every call above passes values, null, or a pointer to a live word; the clobbers are those of the kernel's ABI.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _);
    }
    result
}

#[cfg(target_arch = "aarch64")]
fn system_call(number: usize, [a, b, c, d]: [usize; 4]) -> isize {
    let result;
    // SAFETY: every call above passes values, null, or a pointer to a live word.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c, in("x3") d);
    }
    result
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        system_call(number::EXIT_GROUP, [1, 0, 0, 0]);
    }
}
