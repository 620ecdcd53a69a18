//! Random numbers from the operating system, or repeatable ones for tests.

pub enum Entropy {
    System,
    Seeded(u64),
}

impl Entropy {
    pub fn new(seed: Option<&[u8]>) -> Self {
        match seed {
            None => Entropy::System,
            Some(bytes) => Entropy::Seeded(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
            })),
        }
    }

    /// None if the system provides no random numbers; the caller must then fail.
    pub fn draw(&mut self) -> Option<u64> {
        match self {
            Entropy::System => {
                let mut bytes = [0u8; 8];
                getrandom::getrandom(&mut bytes).ok()?;
                Some(u64::from_le_bytes(bytes))
            }
            Entropy::Seeded(state) => {
                // splitmix64: short, and sufficient to distinguish connections in tests.
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = *state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                Some(z ^ (z >> 31))
            }
        }
    }
}
