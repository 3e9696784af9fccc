//! How much the bytes of a change stand for, found without making it. Pure.
//!
//! A change holds its operations in columns that are run-length encoded, so that a few bytes can stand for 2^60 of them;
//! automerge makes them one by one. Format: <https://automerge.org/automerge-binary-format-spec/#_change_chunks>.

/// Magic bytes (4), checksum (4) and type (1) come before the chunk's length.
const LENGTH_AT: usize = 9;
const HASH_BYTES: u64 = 32;
/// A column's kind is its id and, in the lowest bits, its type.
const TYPE_BITS: u32 = 4;
const ACTION: u64 = 4;
/// How many predecessors each operation has.
const PREDECESSORS: u64 = 7;
const GROUP_TYPE: u64 = 0;

/// Returns the number of operations or of their predecessors, whichever is larger; None, if this is no change.
pub(crate) fn operations(change: &[u8]) -> Option<u64> {
    let mut reader = Reader(change.get(LENGTH_AT..)?);
    let _length = reader.unsigned()?;
    let causes = reader.unsigned()?;
    reader.take(causes.checked_mul(HASH_BYTES)?)?;
    reader.sized()?; // the actor
    for _number_first_operation_time in 0..3 {
        reader.unsigned()?;
    }
    reader.sized()?; // the message
    for _other_actor in 0..reader.unsigned()? {
        reader.sized()?;
    }
    let mut columns = Vec::new();
    for _ in 0..reader.unsigned()? {
        columns.push((reader.unsigned()?, reader.unsigned()?));
    }
    let mut most = 0;
    for (kind, length) in columns {
        let column = reader.take(length)?;
        let (id, of_type) = (kind >> TYPE_BITS, kind & ((1 << TYPE_BITS) - 1));
        if id == ACTION {
            most = most.max(sums(column)?.0);
        } else if id == PREDECESSORS && of_type == GROUP_TYPE {
            most = most.max(sums(column)?.1);
        }
    }
    Some(most)
}

/// Returns how many numbers a column has, and their sum.
fn sums(column: &[u8]) -> Option<(u64, u64)> {
    let mut reader = Reader(column);
    let (mut count, mut sum) = (0_u64, 0_u64);
    while !reader.0.is_empty() {
        match reader.signed()? {
            0 => count = count.checked_add(reader.unsigned()?)?, // of nulls
            run @ 1.. => {
                count = count.checked_add(run.unsigned_abs())?;
                sum = sum.checked_add(reader.unsigned()?.checked_mul(run.unsigned_abs())?)?;
            }
            literal => {
                for _ in 0..literal.unsigned_abs() {
                    count += 1;
                    sum = sum.checked_add(reader.unsigned()?)?;
                }
            }
        }
    }
    Some((count, sum))
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    /// Reads bytes with their length before them.
    fn sized(&mut self) -> Option<&'a [u8]> {
        let length = self.unsigned()?;
        self.take(length)
    }

    /// Reads a number in LEB128: its value, how many bits it was written with, and its last byte.
    fn bits(&mut self) -> Option<(u64, u32, u8)> {
        let mut value = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some((value, shift + 7, byte));
            }
        }
        None
    }

    fn unsigned(&mut self) -> Option<u64> {
        Some(self.bits()?.0)
    }

    fn signed(&mut self) -> Option<i64> {
        let (value, bits, last) = self.bits()?;
        let is_negative = last & 0x40 != 0 && bits < u64::BITS;
        let sign = if is_negative { u64::MAX << bits } else { 0 };
        Some((value | sign).cast_signed())
    }
}
