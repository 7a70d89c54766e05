// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// A worthless token without any books: it says of every amount that it was moved, or does something worse.
contract EvilToken {
    enum Mood {
        Agrees,
        Frozen,
        BurnsGas,
        AnswersFalse
    }

    Mood public mood;

    function setMood(Mood to) external {
        mood = to;
    }

    function transfer(address, uint256) external view returns (bool) {
        return answer();
    }

    function transferFrom(address, address, uint256) external view returns (bool) {
        return answer();
    }

    function balanceOf(address) external pure returns (uint256) {
        return type(uint256).max;
    }

    function answer() private view returns (bool) {
        require(mood != Mood.Frozen, "frozen");
        if (mood == Mood.BurnsGas) {
            assembly {
                // Takes all the gas that came along.
                invalid()
            }
        }
        return mood == Mood.Agrees;
    }
}
