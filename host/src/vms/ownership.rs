//! Whom a VM belongs to, and who may do what to it. Pure.
//!
//! | Ownership | comes from | who may read, change and delete it through the API |
//! |---|---|---|
//! | nobody | an unsigned create | whoever knows its name, as ever |
//! | payer | an unsigned create with a payment stream | the same: clients of streams do not sign |
//! | proven | a signed create | whoever proves by a signature to be the owner, and nobody else |
//!
//! That there is a VM of a name is no secret, since a create that asks for the same name is told so. So whoever asks for
//! another's VM is told that it is another's, and not that there is none.

use alloy::primitives::Address;

/// Whom a VM belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Ownership {
    #[default]
    Nobody,
    /// Whoever sends its payment stream, who has proven nothing to this provider.
    Payer(Address),
    /// Whoever signed the request that made it.
    Proven(Address),
}

/// Why somebody may not do something to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAdmitted {
    /// It takes the owner's signature, and there is none.
    Unsigned,
    /// Signed, by somebody else.
    NotTheOwner,
}

/// A stream pays for the VM of whoever sends it, and for nobody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the request is signed by {signer}, but the payment stream is sent by {payer}; sign with the key that sends the stream, or do not \
     sign"
)]
pub struct NotThePayer {
    pub signer: Address,
    pub payer: Address,
}

impl Ownership {
    /// Of a VM whose create was signed by `signer`, and is paid for by a stream of `payer`.
    ///
    /// # Errors
    /// They are two: one who signs may not use another's stream.
    pub fn of(signer: Option<Address>, payer: Option<Address>) -> Result<Self, NotThePayer> {
        match (signer, payer) {
            (None, None) => Ok(Self::Nobody),
            (None, Some(payer)) => Ok(Self::Payer(payer)),
            (Some(signer), Some(payer)) if signer != payer => Err(NotThePayer { signer, payer }),
            (Some(signer), _) => Ok(Self::Proven(signer)),
        }
    }

    pub fn owner(self) -> Option<Address> {
        match self {
            Self::Nobody => None,
            Self::Payer(owner) | Self::Proven(owner) => Some(owner),
        }
    }

    /// Whether nothing is told or done without the owner's signature.
    pub fn is_proven(self) -> bool {
        matches!(self, Self::Proven(_))
    }

    /// Whether somebody who has proven to be `caller`, or has proven nothing, may read and change what belongs so.
    ///
    /// # Errors
    /// They may not.
    pub fn admits(self, caller: Option<Address>) -> Result<(), NotAdmitted> {
        match (self, caller) {
            (Self::Nobody | Self::Payer(_), _) => Ok(()),
            (Self::Proven(owner), Some(caller)) if caller == owner => Ok(()),
            (Self::Proven(_), Some(_)) => Err(NotAdmitted::NotTheOwner),
            (Self::Proven(_), None) => Err(NotAdmitted::Unsigned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Address = Address::repeat_byte(0xaa);
    const B: Address = Address::repeat_byte(0xbb);

    #[test]
    fn a_vm_belongs_to_whoever_signed_for_it_else_to_whoever_pays() {
        assert_eq!(Ownership::of(None, None), Ok(Ownership::Nobody));
        assert_eq!(Ownership::of(None, Some(A)), Ok(Ownership::Payer(A)));
        assert_eq!(Ownership::of(Some(A), None), Ok(Ownership::Proven(A)));
        assert_eq!(Ownership::of(Some(A), Some(A)), Ok(Ownership::Proven(A)));
        assert_eq!(Ownership::of(Some(A), Some(B)), Err(NotThePayer { signer: A, payer: B }));
    }

    #[test]
    fn only_the_owner_is_admitted_to_what_was_signed_for_and_everybody_to_the_rest() {
        for caller in [None, Some(A), Some(B)] {
            assert_eq!(Ownership::Nobody.admits(caller), Ok(()));
            assert_eq!(Ownership::Payer(A).admits(caller), Ok(()));
        }
        assert_eq!(Ownership::Proven(A).admits(Some(A)), Ok(()));
        assert_eq!(Ownership::Proven(A).admits(Some(B)), Err(NotAdmitted::NotTheOwner));
        assert_eq!(Ownership::Proven(A).admits(None), Err(NotAdmitted::Unsigned));
    }
}
