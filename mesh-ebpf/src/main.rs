//! The kernel programs: one file a hook.
//!
//! A pod's connection is classified once, in connect(2), and nothing is paid per packet. Every
//! program leaves alone what it does not understand: the way out of an error is the kernel's own
//! behaviour, except where a service says it must fail closed.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod accelerate;
mod atomic;
mod authz;
mod capture;
mod classify;
mod config;
mod connect;
mod events;
mod inbound;
mod maps;
mod name;
mod reserve;
mod sk_lookup;
mod sk_msg;
mod sk_state;
mod sock_ops;
mod sock_release;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
