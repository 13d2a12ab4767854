//! Values that exist once for each family, and lists of ranges: `10.0.0.1,fd00::1`.

use core::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;

use crate::model::Family;

/// At most one value for each family, written as a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PerFamily<T> {
    /// The IPv4 one.
    pub v4: Option<T>,
    /// The IPv6 one.
    pub v6: Option<T>,
}

impl<T> Default for PerFamily<T> {
    fn default() -> Self {
        Self { v4: None, v6: None }
    }
}

impl<T: Copy> PerFamily<T> {
    /// The value of `family`.
    pub const fn of(&self, family: Family) -> Option<T> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// Sets the value of `family`.
    pub const fn set(&mut self, family: Family, value: T) {
        match family {
            Family::V4 => self.v4 = Some(value),
            Family::V6 => self.v6 = Some(value),
        }
    }

    /// Whether no family has a value.
    pub const fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

/// Why a list cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ListError {
    /// Not an address.
    #[error("{0:?} is not an IP address: write it like 192.0.2.1 or 2001:db8::1")]
    NotAnAddress(String),
    /// Nobody can be reached there.
    #[error("{0} is a loopback, unspecified or multicast address: give an address of this node")]
    SpecialAddress(IpAddr),
    /// Not a range.
    #[error("{0:?} is not an address range: write it like 192.0.2.0/24 or 2001:db8::/32")]
    NotARange(String),
    /// Two values of one family.
    #[error("{0} is the second {1} one: give at most one for each family")]
    Second(String, Family),
}

/// One entry of a list.
pub trait Entry: Copy + fmt::Display {
    /// Reads it.
    ///
    /// # Errors
    /// [`ListError`]
    fn read(text: &str) -> Result<Self, ListError>;
    /// Its family.
    fn family(&self) -> Family;
}

impl Entry for IpAddr {
    fn read(text: &str) -> Result<Self, ListError> {
        let addr: Self = text.parse().ok().ok_or_else(|| ListError::NotAnAddress(text.to_owned()))?;
        let addr = addr.to_canonical();
        let is_special = addr.is_unspecified() || addr.is_loopback() || addr.is_multicast();
        if is_special { Err(ListError::SpecialAddress(addr)) } else { Ok(addr) }
    }

    fn family(&self) -> Family {
        Family::of(self)
    }
}

impl Entry for IpNet {
    fn read(text: &str) -> Result<Self, ListError> {
        text.parse::<Self>()
            .map(|range| range.trunc())
            .ok()
            .ok_or_else(|| ListError::NotARange(text.to_owned()))
    }

    fn family(&self) -> Family {
        Family::of(&self.addr())
    }
}

/// The entries of a list; a variable that a template left empty has none.
pub(super) fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

impl<T: Entry> FromStr for PerFamily<T> {
    type Err = ListError;

    fn from_str(text: &str) -> Result<Self, ListError> {
        let mut found = Self::default();
        for entry in entries(text) {
            let value = T::read(entry)?;
            if found.of(value.family()).is_some() {
                return Err(ListError::Second(value.to_string(), value.family()));
            }
            found.set(value.family(), value);
        }
        Ok(found)
    }
}

impl<T: fmt::Display> fmt::Display for PerFamily<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> =
            [&self.v4, &self.v6].into_iter().flatten().map(ToString::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

/// Address ranges of both families.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ranges(
    /// As they were given, host bits cleared.
    pub Vec<IpNet>,
);

impl FromStr for Ranges {
    type Err = ListError;

    fn from_str(text: &str) -> Result<Self, ListError> {
        entries(text).map(IpNet::read).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_for_each_family_in_any_order() {
        let both: PerFamily<IpAddr> = "fd00::1, 10.0.0.1".parse().unwrap();
        assert_eq!(both.to_string(), "10.0.0.1,fd00::1");
        assert_eq!(both.of(Family::V6), Some("fd00::1".parse().unwrap()));
        assert!("".parse::<PerFamily<IpAddr>>().unwrap().is_empty());
        let mapped: PerFamily<IpAddr> = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(mapped.to_string(), "10.0.0.1");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (text, named) in [
            ("10.0.0.1,10.0.0.2", "10.0.0.2 is the second IPv4 one"),
            ("0.0.0.0", "0.0.0.0 is a loopback, unspecified"),
            ("node1", "\"node1\" is not an IP address"),
        ] {
            let error = text.parse::<PerFamily<IpAddr>>().unwrap_err().to_string();
            assert!(error.starts_with(named), "{error}");
        }
        for (text, named) in [
            ("10.0.0.0/8,192.168.0.0/16", "192.168.0.0/16 is the second IPv4 one"),
            ("10.0.0.0/33", "\"10.0.0.0/33\" is not an address range"),
        ] {
            let error = text.parse::<PerFamily<IpNet>>().unwrap_err().to_string();
            assert!(error.starts_with(named), "{error}");
        }
    }

    #[test]
    fn ranges_have_no_host_bits() {
        let ranges: Ranges = "10.96.0.1/12,fd00::1/108".parse().unwrap();
        assert_eq!(
            ranges.0.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.96.0.0/12", "fd00::/108"]
        );
    }
}
