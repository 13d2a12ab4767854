//! A list that is nearly always empty.

use core::fmt;
use core::ops::Deref;

/// A list that is one pointer wide and has no memory of its own while it is empty.
#[derive(Clone, PartialEq, Eq)]
#[expect(
    clippy::box_collection,
    reason = "a boxed slice is two pointers wide, and this one is nearly always absent"
)]
pub struct Few<T>(Option<Box<Vec<T>>>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_ref().map_or(&[], |list| list)
    }
}

impl<T: fmt::Debug> fmt::Debug for Few<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T> From<Vec<T>> for Few<T> {
    fn from(mut list: Vec<T>) -> Self {
        list.shrink_to_fit();
        Self((!list.is_empty()).then(|| Box::new(list)))
    }
}

impl<T, const N: usize> From<[T; N]> for Few<T> {
    fn from(list: [T; N]) -> Self {
        Vec::from(list).into()
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        items.into_iter().collect::<Vec<T>>().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_is_one_pointer_and_equal_to_the_default() {
        assert_eq!(size_of::<Few<[u64; 4]>>(), size_of::<usize>());
        assert_eq!(Few::from(Vec::<u8>::new()), Few::default());
        assert!(Few::<u8>::default().is_empty());
        assert_eq!(*Few::from(vec![1, 2]), [1, 2]);
    }
}
