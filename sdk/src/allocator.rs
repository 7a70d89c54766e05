//! The memory allocator of a component.
//!
//! Every call runs in a fresh instance, which begins with the memory that the component was made with. The standard
//! allocator asks for more before it hands out its first byte, and each time the provider has to change what is mapped and later
//! change it back, which takes longer than a short call. So the first [`ARENA_BYTES`] come out of memory that is there
//! from the beginning and costs nothing until it is used; what does not fit goes to the standard allocator.
//!
//! What is freed in the arena is used again only if it was the last to be taken. A call that allocates much and lives long uses
//! the arena up early, and is served by the standard allocator from then on.

use core::{
    alloc::{GlobalAlloc, Layout},
    cell::{Cell, UnsafeCell},
};
use std::alloc::System;

const ARENA_BYTES: usize = 128 * 1024;

/// Allocates from the arena first.
pub(crate) struct ArenaFirst {
    arena: UnsafeCell<Arena>,
    /// How much of the arena is taken, from its beginning on.
    taken: Cell<usize>,
}

#[repr(align(16))]
#[expect(dead_code, reason = "read and written through pointers only")]
struct Arena([u8; ARENA_BYTES]);

// SAFETY: a component has one thread, on which nothing interrupts an allocation.
unsafe impl Sync for ArenaFirst {}

impl ArenaFirst {
    pub const fn new() -> Self {
        Self { arena: UnsafeCell::new(Arena([0; ARENA_BYTES])), taken: Cell::new(0) }
    }

    fn begin(&self) -> *mut u8 {
        self.arena.get().cast()
    }

    /// How far from the arena's beginning, if it is in there.
    fn offset(&self, pointer: *mut u8) -> Option<usize> {
        pointer.addr().checked_sub(self.begin().addr()).filter(|offset| *offset < ARENA_BYTES)
    }

    /// Where a piece of this layout would begin and end.
    fn next(&self, layout: Layout) -> Option<(usize, usize)> {
        let begin = self.begin().addr();
        let at =
            begin.checked_add(self.taken.get())?.checked_next_multiple_of(layout.align())? - begin;
        let end = at.checked_add(layout.size())?;
        (end <= ARENA_BYTES).then_some((at, end))
    }
}

// SAFETY: pieces of the arena lie within it, are aligned, and do not overlap: each begins where all earlier ones have ended,
// and only the last one's end is ever moved. Whatever is not in the arena came from the standard allocator and goes back there.
unsafe impl GlobalAlloc for ArenaFirst {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.next(layout) {
            Some((at, end)) => {
                self.taken.set(end);
                self.begin().wrapping_add(at)
            }
            // SAFETY: the caller keeps the same promises to us.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match self.offset(pointer) {
            Some(at) if at + layout.size() == self.taken.get() => self.taken.set(at),
            Some(_) => {}
            // SAFETY: it is not in the arena, so the standard allocator gave it, for the same layout.
            None => unsafe { System.dealloc(pointer, layout) },
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Some(at) = self.offset(pointer) else {
            // SAFETY: it is not in the arena, so the standard allocator gave it, for the same layout.
            return unsafe { System.realloc(pointer, layout, new_size) };
        };
        let is_last = at + layout.size() == self.taken.get();
        let end = at.saturating_add(new_size);
        if is_last && end <= ARENA_BYTES {
            self.taken.set(end);
            return pointer;
        }
        if new_size <= layout.size() {
            return pointer;
        }
        // SAFETY: the caller promises that the new size makes a layout with this alignment.
        let new =
            unsafe { self.alloc(Layout::from_size_align_unchecked(new_size, layout.align())) };
        if !new.is_null() {
            // SAFETY: the old piece has so many bytes, the new one more, and they do not overlap.
            unsafe { core::ptr::copy_nonoverlapping(pointer, new, layout.size()) };
            if is_last {
                // The new piece is elsewhere: nothing was taken of the arena after the old one.
                self.taken.set(at);
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap_or(Layout::new::<u8>())
    }

    #[test]
    fn pieces_are_aligned_apart_and_keep_what_is_written_to_them() {
        let allocator = Box::new(ArenaFirst::new());
        let mut pieces: Vec<(*mut u8, Layout, u8)> = Vec::new();
        for round in 0..4000_usize {
            let layout = layout(1 + round * 7 % 400, 1 << (round % 6));
            // SAFETY: the layout is not empty; each piece is written within its size, and given back once, with its layout.
            unsafe {
                let piece = allocator.alloc(layout);
                assert!(!piece.is_null() && piece.addr().is_multiple_of(layout.align()));
                let mark = (round % 251) as u8;
                piece.write_bytes(mark, layout.size());
                pieces.push((piece, layout, mark));
                if round % 3 == 0 {
                    let (piece, layout, mark) = pieces.swap_remove(round % pieces.len());
                    assert_eq!((*piece, *piece.add(layout.size() - 1)), (mark, mark));
                    allocator.dealloc(piece, layout);
                }
                if round % 5 == 0
                    && let Some((piece, layout, mark)) = pieces.pop()
                {
                    let size = 1 + round * 13 % 900;
                    let moved = allocator.realloc(piece, layout, size);
                    let kept = layout.size().min(size);
                    assert_eq!((*moved, *moved.add(kept - 1)), (mark, mark));
                    moved.write_bytes(mark, size);
                    pieces.push((moved, self::layout(size, layout.align()), mark));
                }
            }
        }
        assert_eq!(allocator.taken.get().div_ceil(ARENA_BYTES), 1, "it was not used");
        for (piece, layout, mark) in pieces {
            // SAFETY: as above.
            unsafe {
                for at in 0..layout.size() {
                    assert_eq!(*piece.add(at), mark);
                }
                allocator.dealloc(piece, layout);
            }
        }
    }

    #[test]
    fn the_last_piece_is_given_back_and_grows_in_its_place() {
        let allocator = Box::new(ArenaFirst::new());
        // SAFETY: as above.
        unsafe {
            let first = allocator.alloc(layout(100, 8));
            let last = allocator.alloc(layout(100, 8));
            assert_eq!(allocator.realloc(last, layout(100, 8), 5000), last);
            allocator.dealloc(last, layout(5000, 8));
            assert_eq!(allocator.alloc(layout(10, 8)), last);
            let large = allocator.alloc(layout(ARENA_BYTES, 1));
            assert!(allocator.offset(large).is_none());
            allocator.dealloc(large, layout(ARENA_BYTES, 1));
            allocator.dealloc(first, layout(100, 8));
        }
    }
}
