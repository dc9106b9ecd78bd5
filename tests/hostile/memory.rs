//! How much memory a piece of work holds at most at a time.
#![expect(
    unsafe_code,
    reason = "an allocator is unsafe by its trait; this one counts and passes on"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    /// Bytes held by this thread, and the most it held, since [`most_held`] began.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

struct Counting;

/// Does some work on this thread, and tells the most bytes it had allocated at a time.
pub fn most_held<T>(work: impl FnOnce() -> T) -> (T, usize) {
    HELD.set((0, 0));
    let done = work();
    let (_, most) = HELD.get();
    (done, usize::try_from(most).unwrap_or(0))
}

fn count(bytes: isize) {
    // A thread on its way out has no count any more, and nobody who asks for it.
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        held.set((now + bytes, most.max(now + bytes)));
    });
}

// SAFETY: every call is passed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps what `alloc` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps what `alloc_zeroed` asks for.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller keeps what `dealloc` asks for.
        unsafe { System.dealloc(block, layout) }
    }
}

#[test]
fn what_is_held_at_a_time_is_counted() {
    let (_, most) = most_held(|| {
        drop(vec![1_u8; 1000]);
        vec![1_u8; 2000]
    });
    assert_eq!(most, 2000);
}
