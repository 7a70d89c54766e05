// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// A token that moves whatever it is told to and answers nothing, as some did before ERC-20 was settled.
contract NoReturnToken {
    function transfer(address, uint256) external {}

    function transferFrom(address, address, uint256) external {}
}
