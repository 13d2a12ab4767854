//! The checksum of SCTP (CRC32c: RFC 9260 6.8 and appendix A) after a change of the ports, without a look at what is behind them.
//!
//! A CRC is linear: with other ports it changes by the CRC of the difference and as many zeros as bytes follow, whatever these are. That is
//! a product of polynomials, of a length that the packet's has no part in.

/// Castagnoli's polynomial. The highest bit is the lowest power, as in the checksum.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The polynomial 1.
const ONE: u32 = 1 << 31;
/// Bits of a length.
const LENGTH_BITS: u32 = 16;

/// All bits, or none: a verifier walks through everything behind a branch twice.
const fn all(bit: u32) -> u32 {
    0_u32.wrapping_sub(bit & 1)
}

/// The product with x, modulo the polynomial.
#[inline(always)]
const fn next(power: u32) -> u32 {
    (power >> 1) ^ (POLYNOMIAL & all(power))
}

/// The product of two polynomials, modulo the polynomial.
#[inline(always)]
const fn product(one: u32, other: u32) -> u32 {
    let (mut sum, mut rest, mut shifted) = (0, one, other);
    let mut bit = 0;
    while bit < u32::BITS {
        sum ^= shifted & all(rest >> 31);
        rest <<= 1;
        shifted = next(shifted);
        bit = bit.wrapping_add(1);
    }
    sum
}

/// x to the power of the bits in so many bytes, which are below 2^16.
#[inline(always)]
const fn after(bytes: u32) -> u32 {
    let mut power = ONE;
    let mut bit = LENGTH_BITS;
    while bit != 0 {
        bit = bit.wrapping_sub(1);
        power = product(power, power);
        let mut more = power;
        let mut steps = 0_u32;
        while steps < 8 {
            more = next(more);
            steps = steps.wrapping_add(1);
        }
        let chosen = all(bytes >> bit);
        power = (more & chosen) | (power & !chosen);
    }
    power
}

/// What is to be added (exclusive or) to the checksum of `len` bytes, when `difference` is added to the first four of them. All words are
/// read as little endian, and `len` is at least 4 and below 2^16.
#[inline(always)]
pub const fn change(difference: u32, len: u32) -> u32 {
    product(difference, after(len))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::change;

    /// The checksum, bit by bit.
    fn whole(bytes: &[u8]) -> u32 {
        !bytes
            .iter()
            .fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| super::next(crc)))
    }

    #[test]
    fn the_checksum_is_castagnoli_s() {
        // RFC 3720 B.4: 32 bytes of zeros, and of ones; and the check value of this CRC.
        assert_eq!(whole(&[0; 32]), 0x8a91_36aa);
        assert_eq!(whole(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(whole(b"123456789"), 0xe306_9283);
    }

    proptest! {
        /// SC-1.
        #[test]
        fn a_change_of_the_first_word_is_what_a_full_recompute_gives(
            mut bytes in prop::collection::vec(any::<u8>(), 4..2000),
            word: [u8; 4],
        ) {
            let before = whole(&bytes);
            let old: Vec<u8> = bytes.splice(..4, word).collect();
            let difference = u32::from_le_bytes(old.try_into().unwrap()) ^ u32::from_le_bytes(word);
            let len = u32::try_from(bytes.len()).unwrap();
            prop_assert_eq!(before ^ change(difference, len), whole(&bytes));
        }
    }
}
