//! jemalloc: what a push replaced goes back to the system, where the C library's allocator keeps a
//! third of the agent's memory after everything has been pushed again.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Pages are given back by a thread of its own, two seconds after they fell free, and not by the
/// worker that happens to free the last of them.
// SAFETY: jemalloc reads the text that this symbol points to, once, before the first allocation;
// it ends with a zero and is never written.
#[unsafe(export_name = "_rjem_malloc_conf")]
static CONFIGURATION: Option<&'static std::ffi::c_char> = {
    const TEXT: &std::ffi::CStr = c"background_thread:true,dirty_decay_ms:2000,muzzy_decay_ms:0";
    // SAFETY: a text has a first character.
    Some(unsafe { &*TEXT.as_ptr() })
};
