// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {StreamPayment} from "./StreamPayment.sol";

/// A contract that pays by streams, and is difficult about getting coin back.
contract GrumpySender {
    enum Mood {
        Rejects,
        BurnsGas,
        Accepts
    }

    Mood public mood;

    function setMood(Mood to) external {
        mood = to;
    }

    /// Opens a stream of the chain's own coin, which has to come along.
    function open(StreamPayment payments, address recipient, uint128 ratePerSecond)
        external
        payable
        returns (uint256 streamId)
    {
        return payments.createStream{value: msg.value}(address(0), recipient, msg.value, ratePerSecond);
    }

    function terminate(StreamPayment payments, uint256 streamId) external {
        payments.terminate(streamId);
    }

    receive() external payable {
        require(mood != Mood.Rejects, "no thanks");
        if (mood == Mood.BurnsGas) {
            assembly {
                // Takes all the gas that came along.
                invalid()
            }
        }
    }
}
