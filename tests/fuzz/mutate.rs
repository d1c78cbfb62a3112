//! Changes inputs at random, as fuzzers without knowledge of coverage do.

use fastrand::Rng;

/// Long inputs are slow and find no more.
const BYTES_MAX: usize = 8 << 10;

/// One of `corpus`, changed in up to eight places.
pub(crate) fn mutant(corpus: &[Vec<u8>], random: &mut Rng) -> Vec<u8> {
    let mut input = random.choice(corpus).unwrap().clone();
    for _ in 0..random.usize(1..=8) {
        change(&mut input, corpus, random);
    }
    input.truncate(BYTES_MAX);
    input
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Rng) {
    let at = random.usize(0..=input.len());
    let end = (at + random.usize(0..=16)).min(input.len());
    match random.u8(0..7) {
        0 => input.insert(at, random.u8(..)),
        // What parsers take for the end of something.
        1 => input.insert(at, *random.choice(b"\r\n\t\0 ,;:=.\"\\{}[]/%").unwrap()),
        2 => drop(input.drain(at..end)),
        3 => {
            let repeated = input[at..end].repeat(random.usize(1..=20));
            input.splice(at..at, repeated);
        }
        4 => {
            let other = random.choice(corpus).unwrap();
            let from = random.usize(0..=other.len());
            let to = (from + random.usize(0..=64)).min(other.len());
            input.splice(at..end, other[from..to].iter().copied());
        }
        5 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.u8(0..8);
            }
        }
        _ => {
            if let Some(byte) = input.get_mut(at) {
                *byte = random.u8(..);
            }
        }
    }
}
