// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {MockGLM} from "./MockGLM.sol";

/// A token that keeps half of whatever is moved, so that a contract holds less of it than it has in its books.
contract FeeToken is MockGLM {
    function arriving(uint256 amount) internal pure override returns (uint256) {
        return amount / 2;
    }
}
